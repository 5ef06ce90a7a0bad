"""A connection to the broker that keeps itself alive: MQTT 5 or 3.1.1, TLS, and in words why it is not up."""

import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from station.settings import MqttSettings, SettingsError, TlsSettings

log = structlog.get_logger(__name__)

RECONNECT_SECONDS = (1, 30)  # first and longest pause, doubled in between
CONNECT_TIMEOUT = 5.0
_UNSUPPORTED_PROTOCOL = 0x84
_BAD_LOGIN = 0x86
_NOT_AUTHORIZED = 0x87
_TAKEN_OVER = 0x8E
_ADVICE = {
    _BAD_LOGIN: "check mqtt.username and the password",
    _NOT_AUTHORIZED: "check mqtt.username, the password, the client certificate and the broker's access list",
    _TAKEN_OVER: "another client uses the same mqtt.client_id",
}
# Some brokers hang up on MQTT 5 without a word; so does a broker that is just starting, which is why once is
# not enough to give MQTT 5 up.
_HANG_UPS_BEFORE_FALLBACK = 2


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for us when we vanish."""

    topic: str
    payload: bytes


class Connection:
    """One client of the broker, in paho's own network thread.

    It connects in the background and again after every loss, with growing pauses. The callbacks run in the network
    thread: they must be short and must not raise.

    Attributes:
        on_connected: called after every successful log-in, with the properties that the broker announced (MQTT 5).
        on_disconnected: called after every loss.
        on_published: called with the message id and the reason once a message has left us (QoS 0) or was
            acknowledged (QoS 1).
        on_message: called with every message received.
    """

    def __init__(self, settings: MqttSettings, client_id: str, will: Will | None = None) -> None:
        """Prepare; ``start`` connects.

        Raises:
            SettingsError: a TLS file cannot be used.
        """
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._tls = _tls_context(settings.tls) if settings.tls is not None else None
        self._protocol = MQTTProtocolVersion.MQTTv311 if settings.protocol == "3.1.1" else mqtt.MQTTv5
        self._hang_ups = 0
        self._answered = False  # this attempt's log-in, with yes or no
        self._connected = threading.Event()
        self._ended = threading.Event()
        self._problem: str | None = None
        self.on_connected: Callable[[Properties | None], None] = lambda _: None
        self.on_disconnected: Callable[[], None] = lambda: None
        self.on_published: Callable[[int, ReasonCode], None] = lambda *_: None
        self.on_message: Callable[[mqtt.MQTTMessage], None] = lambda _: None
        self._client = self._new_client()

    @property
    def client(self) -> mqtt.Client:
        """The client in use; another one after a fall-back to 3.1.1."""
        return self._client

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted our log-in and the connection stands."""
        return self._connected.is_set()

    @property
    def problem(self) -> str | None:
        """Why there is no connection, in words; None while there is one or the first attempt is under way."""
        return self._problem

    @property
    def protocol(self) -> str:
        """The protocol version spoken: "5" or "3.1.1"."""
        return "5" if self._protocol == mqtt.MQTTv5 else "3.1.1"

    @property
    def where(self) -> str:
        """Host and port, for messages."""
        return f"{self._settings.host}:{self._settings.port}"

    def start(self) -> None:
        """Start connecting; returns at once, and never fails for want of a broker."""
        self._client.connect_async(
            self._settings.host, self._settings.port, keepalive=self._settings.keepalive, **self._connect_options()
        )
        self._client.loop_start()

    def stop(self, timeout: float) -> None:
        """Say goodbye, so that the broker keeps the last will to itself; wait for it at most ``timeout`` seconds."""
        was_connected = self.connected
        self._client.disconnect()
        if was_connected:  # else the network thread may hang in connect(); it is a daemon thread and dies with us
            self._ended.wait(timeout)

    def wait(self, timeout: float) -> bool:
        """Wait until connected; False if it did not come to that."""
        return self._connected.wait(timeout)

    def _connect_options(self) -> dict[str, Any]:
        return {"clean_start": True} if self._protocol == mqtt.MQTTv5 else {}

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=self._protocol)
        client.connect_timeout = CONNECT_TIMEOUT
        client.reconnect_delay_set(*RECONNECT_SECONDS)
        if self._settings.username is not None or self._settings.password is not None:
            password = self._settings.password
            client.username_pw_set(self._settings.username or "", password.get_secret_value() if password else None)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._will is not None:
            properties = None
            if self._protocol == mqtt.MQTTv5:
                properties = new_properties(PacketTypes.WILLMESSAGE)
                properties.ContentType = "application/json"
                properties.PayloadFormatIndicator = 1
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True, properties=properties)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = lambda _client, _data, mid, reason, _properties: self.on_published(mid, reason)
        client.on_message = lambda _client, _data, message: self.on_message(message)
        return client

    def _on_connect(
        self, client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._hang_ups = 0
        self._answered = True
        if reason.value == _UNSUPPORTED_PROTOCOL and self._may_fall_back(client):
            self._fall_back("the broker refuses MQTT 5")
        elif reason.is_failure:
            advice = _ADVICE.get(reason.value)
            self._report(f"{self.where} refused the log-in: {reason}{f'; {advice}' if advice else ''}")
        else:
            self._problem = None
            self._connected.set()
            log.info("connected to the broker", broker=self.where, mqtt=self.protocol, tls=self._tls is not None)
            self.on_connected(properties if self._protocol == mqtt.MQTTv5 else None)

    def _on_connect_fail(self, _client: mqtt.Client, _data: object) -> None:
        # paho passes no reason, but calls this while it handles the exception.
        error = sys.exc_info()[1]
        self._report(f"{self.where}: {_explain(error) if error else 'no connection'}")

    def _on_disconnect(
        self, client: mqtt.Client, _data: object, flags: mqtt.DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if client is not self._client:
            return  # the one that a fall-back has replaced
        was_connected, was_answered = self._connected.is_set(), self._answered
        self._answered = False
        self._connected.clear()
        self._ended.set()
        if was_connected:
            advice = _ADVICE.get(reason.value) if flags.is_disconnect_packet_from_server else None
            if reason.is_failure:
                self._report(f"{self.where}: connection lost: {reason}{f'; {advice}' if advice else ''}")
            self.on_disconnected()
        elif not was_answered:
            self._hang_ups += 1
            self._report(
                f"{self.where} hung up before it answered the log-in; is this an MQTT port"
                f"{', and one with TLS' if self._tls else ', and one without TLS'}?"
            )
            if self._hang_ups >= _HANG_UPS_BEFORE_FALLBACK and self._may_fall_back(client):
                self._fall_back("the broker hangs up on MQTT 5")

    def _may_fall_back(self, client: mqtt.Client) -> bool:
        return client is self._client and self._settings.protocol == "auto" and self.protocol == "5"

    def _fall_back(self, why: str) -> None:
        """Replace the client: paho fixes the protocol version when a client is made."""
        log.info("falling back to MQTT 3.1.1", broker=self.where, why=why)
        old, self._protocol = self._client, MQTTProtocolVersion.MQTTv311
        self._client = self._new_client()
        old.disconnect()  # we run in its network thread, which ends once this callback returns
        self.start()

    def _report(self, problem: str) -> None:
        if problem != self._problem:  # it is tried again and again: tell each reason once
            log.warning("no connection to the broker", problem=problem)
        self._problem = problem


def new_properties(packet_type: int) -> Properties:
    """Properties of an MQTT 5 packet, empty."""
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped


def _tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Certificate and host name are always verified; there is no switch to turn that off."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"mqtt.tls.ca_file = {settings.ca_file}: not a readable PEM certificate: {error}"
        ) from error
    if settings.cert_file is not None:
        try:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"mqtt.tls.cert_file = {settings.cert_file}, mqtt.tls.key_file = {settings.key_file}: "
                f"not a readable PEM certificate with its key (without a passphrase): {error}"
            ) from error
    return context


def _explain(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the broker's certificate is not trusted: {error.verify_message}; mqtt.tls.ca_file must hold the CA that "
            "signed it, and mqtt.host must be a name in it"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}; is this the broker's TLS port?"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; is the broker running, are mqtt.host and mqtt.port right?"
    if isinstance(error, socket.gaierror):
        return "the host name is unknown; is mqtt.host right?"
    if isinstance(error, TimeoutError):
        return "no answer; are mqtt.host and mqtt.port right, is a firewall in between?"
    return str(error) or type(error).__name__
