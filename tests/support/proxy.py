"""A network between station and broker that delays, throttles, swallows and cuts on command: a TCP proxy."""

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

from typing_extensions import Self

HOST = "127.0.0.1"
_CHUNK = 2**14


class Proxy:
    """``with Proxy(broker.port) as proxy: MqttSettings(port=proxy.port)``.

    Attributes:
        port: to connect to instead of the target's.
        delay: seconds that every piece takes each way.
        bytes_per_second: bandwidth each way; None: no limit.
    """

    def __init__(self, target: int) -> None:
        self.delay = 0.0
        self.bytes_per_second: float | None = None
        self._target = target
        self._swallowing = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._closed = False
        self._lines: list[socket.socket] = []
        self._lock = threading.Lock()
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def pause(self) -> None:
        """Nothing passes any more, neither way, and nobody is told; new connections are taken and stay silent."""
        self._flowing.clear()

    def resume(self) -> None:
        """Go on with what waits."""
        self._flowing.set()

    def swallow(self) -> None:
        """As a packet filter that starts to drop: what is sent is gone for good, on this connection and new ones."""
        self._swallowing.set()

    def pass_on(self) -> None:
        """The packet filter is taken away. Connections that lost something stay dead: TCP would not mend them."""
        self._swallowing.clear()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def refuse(self, *, yes: bool) -> None:
        """Hang up on new connections at once."""
        self._refusing = yes

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._refusing or self._closed:
                near.close()
                continue
            far = socket.socket()
            try:
                far.connect((HOST, self._target))
            except OSError:
                near.close()
                far.close()
                continue
            with self._lock:
                self._lines += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        dead = False
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if self.delay:
                    time.sleep(self.delay)
                if self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
                self._flowing.wait()
                dead = dead or self._swallowing.is_set()
                if not dead:
                    sink.sendall(data)
        while dead and self._swallowing.is_set() and not self._closed:  # a FIN would be swallowed as well
            time.sleep(0.02)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._swallowing.clear()
        self._flowing.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self._thread.join(5)
