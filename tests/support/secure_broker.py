"""The broker of deploy/mosquitto, started from its own files; only paths, ports and its user are exchanged."""

import getpass
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from typing_extensions import Self

from tests.support.mosquitto import HOST, Mosquitto, free_port, need

SET_UP = Path(__file__).resolve().parents[2] / "deploy/mosquitto"
STATION, OTHER = "plant/line-1/cam-1", "plant/line-1/cam-2"
PASSWORDS = {"operator": "Opera-7-tor", "dashboard": "Dash-8-board", STATION: "Cam-9-era"}


def make_certificates(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run deploy/mosquitto/make-certificates.sh on ``folder``."""
    need("openssl")
    return subprocess.run(
        [SET_UP / "make-certificates.sh", "-C", folder, *arguments], capture_output=True, text=True, check=check
    )


def make_expired(folder: Path, name: str, common_name: str, extensions: str) -> tuple[Path, Path]:
    """A certificate of the authority in ``folder`` that ran out in 2021, and its key."""
    key, crt = folder / f"{name}.key", folder / f"{name}.crt"
    (folder / f"{name}.cnf").write_text(extensions)
    (folder / f"{name}.req").write_text(f"[req]\nprompt=no\ndistinguished_name=n\n[n]\ncommonName={common_name}\n")
    commands = [
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key],
        ["req", "-new", "-config", folder / f"{name}.req", "-key", key, "-out", folder / f"{name}.csr"],
        ["ca", "-batch", "-notext", "-config", folder / "ca/openssl.cnf", "-startdate", "20200101000000Z",
         "-enddate", "20210101000000Z", "-extfile", folder / f"{name}.cnf", "-in", folder / f"{name}.csr", "-out", crt],
    ]  # fmt: skip
    for command in commands:
        subprocess.run([need("openssl"), *command], check=True, capture_output=True)
    return crt, key


class SecureBroker(Mosquitto):
    """``with SecureBroker(tmp_path) as broker: …``; ``port`` is for certificates, ``password_port`` for passwords."""

    def __init__(self, folder: Path, server: tuple[Path, Path] | None = None) -> None:
        self.certificates = folder / "certificates"
        make_certificates(self.certificates, "ca")
        make_certificates(self.certificates, "server", "localhost", HOST)
        make_certificates(self.certificates, "station", STATION, OTHER)
        self.port, self.password_port = free_port(), free_port()
        self._folder = folder / "mosquitto"
        self._config = self._folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        self._process = None
        (self._folder / "certs").mkdir(parents=True)
        (self._folder / "database").mkdir()
        crt, key = server or (self.certificates / "server/server.crt", self.certificates / "server/server.key")
        for source, name in (
            (self.certificates / "ca.crt", "certs/ca.crt"),
            (self.certificates / "ca.crl", "certs/ca.crl"),
            (crt, "certs/server.crt"),
            (key, "certs/server.key"),
            (SET_UP / "acl", "acl"),
        ):
            (self._folder / name).write_bytes(source.read_bytes())
        passwords = self._folder / "passwords"
        passwords.touch(mode=0o600)
        for name, password in PASSWORDS.items():
            subprocess.run([need("mosquitto_passwd"), "-b", passwords, name, password], check=True)
        text = (SET_UP / "mosquitto.conf").read_text()
        for there, here in (
            ("/etc/mosquitto/", f"{self._folder}/"),
            ("/var/lib/mosquitto/", f"{self._folder}/database/"),
            ("listener 8883", f"listener {self.port}"),
            ("listener 8884", f"listener {self.password_port}"),
        ):
            assert there in text
            text = text.replace(there, here)
        self._config.write_text(f"{text}user {getpass.getuser()}\n")

    def start(self) -> None:
        super().start()  # which waits for the first listener
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.password_port)) == 0:
                    return
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def ca(self) -> Path:
        return self.certificates / "ca.crt"

    def station(self, name: str = STATION) -> tuple[Path, Path]:
        """Certificate and key of a station."""
        folder = self.certificates / "stations" / name
        return folder / "client.crt", folder / "client.key"

    def take_list_of_revoked(self) -> None:
        (self._folder / "certs/ca.crl").write_bytes((self.certificates / "ca.crl").read_bytes())


class Client:
    """Somebody at the broker's door, honest or not. ``with Client(…) as client`` logs in.

    Attributes:
        refusal: why the log-in failed, in words; None once it has succeeded.
        heard: topic and payload of every message received.
    """

    def __init__(
        self,
        port: int,
        ca: Path,
        *,
        certificate: tuple[Path, Path] | None = None,
        login: tuple[str, str] | None = None,
        client_id: str = "",
        will: str | None = None,
        tls: ssl.TLSVersion | None = None,
    ) -> None:
        self.refusal: str | None = "no answer"
        self.heard: list[tuple[str, bytes]] = []
        self.disconnected = threading.Event()
        self._answers: dict[int, ReasonCode] = {}
        self._changed = threading.Condition()
        self._settled = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        context = ssl.create_default_context(cafile=ca)
        if tls is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = tls
            context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else OpenSSL 3 would not even ask
        if certificate:
            context.load_cert_chain(*certificate)
        self._client.tls_set_context(context)
        if login:
            self._client.username_pw_set(*login)
        if will:
            self._client.will_set(will, b"forged", qos=1)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = lambda _c, _d, mid, reason, _p: self._note(mid, reason)
        self._client.on_subscribe = lambda _c, _d, mid, reasons, _p: self._note(mid, reasons[0])
        self._port = port

    def publish(self, topic: str, payload: bytes = b"forged", response_topic: str | None = None) -> str:
        """What the broker answers: "Success", "Not authorized" …"""
        properties = Properties(PacketTypes.PUBLISH)
        if response_topic:
            properties.ResponseTopic = response_topic
        return self._answer(self._client.publish(topic, payload, qos=1, properties=properties).mid)

    def subscribe(self, topic: str) -> str:
        mid = self._client.subscribe(topic, qos=1)[1]
        assert mid is not None
        return self._answer(mid)

    def wait_for(self, topic: str, timeout: float = 20) -> bytes:
        """Payload of the first message on a topic that ends so."""
        with self._changed:
            found = self._changed.wait_for(lambda: any(t.endswith(topic) for t, _ in self.heard), timeout)
            assert found, f"{topic} not among {[t for t, _ in self.heard]}"
            return next(payload for t, payload in self.heard if t.endswith(topic))

    def wait_until(self, found: Callable[[list[tuple[str, bytes]]], object], timeout: float = 20) -> None:
        """Until ``found(heard)`` is true."""
        with self._changed:
            assert self._changed.wait_for(lambda: found(self.heard), timeout), f"heard {[t for t, _ in self.heard]}"

    def vanish(self) -> None:
        """End the connection without a goodbye, so that the broker publishes the last will."""
        wire = self._client.socket()
        assert wire is not None
        self._client.loop_stop()
        wire.shutdown(socket.SHUT_RDWR)

    def _answer(self, mid: int) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: mid in self._answers, 20), "the broker does not answer"
            return str(self._answers[mid])

    def _note(self, mid: int, reason: ReasonCode) -> None:
        with self._changed:
            self._answers[mid] = reason
            self._changed.notify_all()

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.heard.append((message.topic, message.payload))
            self._changed.notify_all()

    def _on_connect(
        self, _client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self.refusal = str(reason) if reason.is_failure else None
        self._settled.set()

    def _on_disconnect(self, *_: object) -> None:
        self.disconnected.set()
        self._settled.set()

    def __enter__(self) -> Self:
        try:
            self._client.connect("localhost", self._port)
        except (OSError, ssl.SSLError) as error:
            self.refusal = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"
            return self
        self._client.loop_start()
        assert self._settled.wait(20)
        if self.refusal:
            self._client.loop_stop()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
