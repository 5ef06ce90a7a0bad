"""A real Mosquitto on localhost for tests, and a client of it that remembers what it heard."""

import getpass
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from typing_extensions import Self

HOST = "127.0.0.1"


def need(program: str) -> str:
    """Path of a program, also one in sbin, which a user's PATH may lack; skips the test where there is none."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed (sh deploy/test-packages.sh)")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


class Mosquitto:
    """``with Mosquitto(tmp_path) as broker: …``; may be killed, paused and started again on the same port.

    Args:
        folder: for its configuration and log.
        options: more lines of mosquitto.conf.
        users: name → password; everybody may come in if there are none.
    """

    def __init__(self, folder: Path, options: Iterable[str] = (), users: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self._log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        self._passwords = folder / "passwords"
        # Started by root, mosquitto becomes another user, who may not read the test's files.
        lines = [f"listener {self.port} {HOST}", f"user {getpass.getuser()}", *options]
        if users:
            self.set_passwords(users)
            lines += ["allow_anonymous false", f"password_file {self._passwords}"]
        else:
            lines.append("allow_anonymous true")
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def set_passwords(self, users: dict[str, str]) -> None:
        """From the next start on."""
        self._passwords.touch(mode=0o600)
        for name, password in users.items():
            subprocess.run([need("mosquitto_passwd"), "-b", self._passwords, name, password], check=True)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [need("mosquitto"), "-v", "-c", self._config], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 10
        while not listens(self.port):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"mosquitto does not start:\n{self._log.read_text()}")
            time.sleep(0.02)

    def wait_for_subscription(self, topic: str) -> None:
        """Until somebody has subscribed; Mosquitto's log tells."""
        deadline = time.monotonic() + 20
        while not self.subscriptions(topic):
            if time.monotonic() > deadline:
                raise AssertionError(f"nobody has subscribed to {topic}:\n{self._log.read_text()}")
            time.sleep(0.02)

    def subscriptions(self, topic: str) -> int:
        """How often somebody has subscribed to it."""
        return self._log.read_text().count(f"{topic} (QoS")

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def forget_log(self) -> None:
        """For ``wait_for_subscription``, after ``kill``."""
        self._log.write_text("")

    def pause(self) -> None:
        """Stop it in its tracks: connections stand, nothing is answered."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on where it was paused."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end: with ``persistence true`` it then saves what its subscribers have not got yet."""
        assert self._process
        self._process.terminate()
        self._process.wait(20)
        self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class Client:
    """A client of the broker, for as long as a ``with`` lasts; when that begins it has subscribed to what it wants.

    Its subclasses make ``_client``, whose ``on_subscribe`` sets ``_subscribed``.
    """

    _patience = 20.0  # seconds
    _client: mqtt.Client
    _subscribed: threading.Event
    _port: int

    def _connect(self) -> None:
        self._client.connect(HOST, self._port)

    def __enter__(self) -> Self:
        self._connect()
        self._client.loop_start()
        assert self._subscribed.wait(self._patience)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Subscriber(Client):
    """A client as a plant's software would be one: subscribes to everything, remembers every message."""

    _patience = 10.0

    def __init__(self, port: int, *, protocol: int = mqtt.MQTTv5, login: tuple[str, str] | None = None) -> None:
        self.heard: list[mqtt.MQTTMessage] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        if login:
            self._client.username_pw_set(*login)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._take
        self._port = port

    def wait_for(self, found: Callable[[list[mqtt.MQTTMessage]], object], timeout: float = 60.0) -> None:
        """Wait until ``found(heard)`` is true; says what was heard if that does not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: found(self.heard), timeout):
                counts = Counter(message.topic for message in self.heard)
                raise AssertionError("not heard; but: " + ", ".join(f"{n} x {topic}" for topic, n in counts.items()))

    def on(self, suffix: str) -> list[bytes]:
        """Payloads heard so far on topics that end so."""
        with self._changed:
            return [message.payload for message in self.heard if message.topic.endswith(suffix)]

    def _take(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()
