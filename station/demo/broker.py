"""The demo's MQTT broker: amqtt in a thread, on a free port of this machine only.

For the demo. It speaks MQTT 3.1.1, keeps nothing and lets everybody on this machine in; a plant uses Mosquitto.
"""

import asyncio
import logging
import socket
import threading
from types import TracebackType

from station.demo.textures import DemoError

HOST = "127.0.0.1"
_START_TIMEOUT = 20.0  # seconds
_STOP_TIMEOUT = 10.0
_PORT_TRIES = 3


class Broker:
    """A broker that runs inside a ``with`` block.

    Attributes:
        port: where it listens.
    """

    def __init__(self) -> None:
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="demo broker", daemon=True)

    def __enter__(self) -> "Broker":  # noqa: PYI034 - typing.Self is of Python 3.11
        """Start it, and wait until it listens.

        Raises:
            DemoError: amqtt is not installed, or it does not start.
        """
        self._thread.start()
        up = self._up.wait(_START_TIMEOUT)
        if isinstance(self._failure, ImportError):
            raise DemoError(
                f"the demo's broker is amqtt, which cannot be imported ({self._failure}): "
                "pip install 'cbigan-station[demo]'"
            ) from self._failure
        if not up or self._failure is not None:
            raise DemoError(f"the demo's broker does not start: {self._failure or 'no answer'}") from self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_TIMEOUT)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told in the thread that waits in __enter__
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        from amqtt.broker import Broker as AmqttBroker  # noqa: PLC0415 - only the demo needs amqtt; see the extra
        from amqtt.errors import BrokerError  # noqa: PLC0415

        # It logs every connection and every client that leaves as a warning.
        logging.getLogger("amqtt").setLevel(logging.CRITICAL)
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        for tries_left in reversed(range(_PORT_TRIES)):
            self.port = _free_port()
            broker = AmqttBroker(
                {
                    "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{self.port}"}},
                    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
                }
            )
            try:
                await broker.start()
                break
            except BrokerError:  # another program was quicker to take the port
                if not tries_left:
                    raise
        self._up.set()
        await self._stop.wait()
        await broker.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
