"""A connection to the broker that keeps itself alive: MQTT 5 or 3.1.1, TLS, and in words why it is not up."""

import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import SecretStr

from station.settings import MqttSettings, SettingsError, TlsSettings

log = structlog.get_logger(__name__)

RECONNECT_SECONDS = (1, 30)  # first and longest pause, doubled in between
CONNECT_TIMEOUT = 5.0
_UNSPECIFIED = 0x80
_UNSUPPORTED_PROTOCOL = 0x84
_BAD_LOGIN = 0x86
_NOT_AUTHORIZED = 0x87
_TAKEN_OVER = 0x8E
_ADVICE = {
    _BAD_LOGIN: "check mqtt.username and the password",
    _NOT_AUTHORIZED: "check mqtt.username, the password, the client certificate and the broker's access list",
    _TAKEN_OVER: "another client uses the same mqtt.client_id",
}
# Some brokers hang up on MQTT 5 without a word or, with a last will in the log-in, wait for more for ever. So does
# one that is just starting, or a proxy in front of it: hence the second try, and hence MQTT 5 again after each loss.
_ANSWER_SECONDS = 3.0
_UNANSWERED_BEFORE_SWITCH = 2


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
        logins: how often the broker has accepted a log-in.
        on_connected: called after every successful log-in, with the properties that the broker announced (MQTT 5).
        on_disconnected: called after every loss.
        on_published: called with the message id and the reason once a message has left us (QoS 0) or was
            acknowledged (QoS 1).
        on_message: called with every message received.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        will: Will | None = None,
        session: timedelta | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """Prepare; ``start`` connects.

        Args:
            settings: the broker, and how to log in.
            client_id: no other client of the broker may use it.
            will: published by the broker when we vanish.
            session: how long the broker keeps our subscriptions, and what comes for them with QoS 1, while we are
                away (MQTT 3.1.1 cannot say how long: as long as the broker does). None: not at all.
            most_bytes: larger packets the broker is asked to keep from us (MQTT 5); None: there is no bound.

        Raises:
            SettingsError: a TLS file or the password file cannot be used.
        """
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._session = session
        self._most_bytes = most_bytes
        self._tls = _tls_context(settings.tls) if settings.tls is not None else None
        self._password = _read_password(settings)
        self._protocol = MQTTProtocolVersion.MQTTv311 if settings.protocol == "3.1.1" else MQTTProtocolVersion.MQTTv5
        self._unanswered = 0
        self._switches = 0  # of protocol since we were last connected
        self._answered = False  # this attempt's log-in, with yes or no
        self._alarm: threading.Timer | None = None  # hangs up on a broker that does not answer it
        self._connected = threading.Event()
        self.logins = 0
        self._ended = threading.Event()
        self._refused = False
        self._problem: str | None = None
        self.on_connected: Callable[[Properties | None], None] = lambda _: None
        self.on_disconnected: Callable[[], None] = lambda: None
        self.on_published: Callable[[int, ReasonCode], None] = lambda *_: None
        self.on_message: Callable[[mqtt.MQTTMessage], None] = lambda _: None
        self._client = self._new_client()

    @property
    def client(self) -> mqtt.Client:
        """The client in use; another one after a change of protocol."""
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
    def refused(self) -> bool:
        """Whether the broker's last answer to our log-in was no."""
        return self._refused

    @property
    def protocol(self) -> str:
        """The protocol version spoken: "5" or "3.1.1"."""
        return "5" if self._protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"

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
        self._answer_is_there()
        self._client.disconnect()
        if was_connected:  # else the network thread may hang in connect(); it is a daemon thread and dies with us
            self._ended.wait(timeout)

    def wait(self, timeout: float) -> bool:
        """Wait until connected; False if it did not come to that."""
        return self._connected.wait(timeout)

    def _connect_options(self) -> dict[str, Any]:
        if self.protocol != "5":
            return {}
        properties = new_properties(PacketTypes.CONNECT)
        if self._session is not None:
            properties.SessionExpiryInterval = int(self._session.total_seconds())
        if self._most_bytes is not None:
            properties.MaximumPacketSize = self._most_bytes
        return {"clean_start": self._session is None, "properties": properties}

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if self.protocol == "5" else self._session is None,  # MQTT 5 says it when connecting
            protocol=self._protocol,
        )
        client.connect_timeout = CONNECT_TIMEOUT
        first, longest = RECONNECT_SECONDS
        client.reconnect_delay_set(min(first * 2**self._switches, longest), longest)
        client.on_pre_connect = self._on_pre_connect
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._will is not None:
            properties = None
            if self.protocol == "5":
                properties = new_properties(PacketTypes.WILLMESSAGE)
                properties.ContentType = "application/json"
                properties.PayloadFormatIndicator = 1
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True, properties=properties)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = lambda _client, _data, mid, reason, _properties: self.on_published(mid, reason)
        client.on_message = lambda _client, _data, message: self.on_message(message)
        client.on_subscribe = self._on_subscribe
        return client

    def _on_pre_connect(self, client: mqtt.Client, _data: object) -> None:
        try:
            self._password = _read_password(self._settings)
        except SettingsError as error:  # perhaps it is being replaced
            self._report(str(error))
        if self._settings.username is not None or self._password is not None:
            password = self._password.get_secret_value() if self._password is not None else None
            client.username_pw_set(self._settings.username or "", password)

    def _on_socket_open(self, client: mqtt.Client, _data: object, wire: object) -> None:
        self._answered = False
        if isinstance(wire, socket.socket):  # else paho's own of WebSockets, which we do not use
            # Small messages that await acknowledgements: Nagle's algorithm would hold each back for up to 40 ms.
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._alarm = threading.Timer(_ANSWER_SECONDS, self._hang_up, (client, wire))
            self._alarm.daemon = True
            self._alarm.start()

    def _hang_up(self, client: mqtt.Client, wire: socket.socket) -> None:
        if client is self._client and not self._answered:
            self._unanswered += 1  # waiting again would take as long; count it twice
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def _answer_is_there(self) -> None:
        self._answered = True
        if self._alarm is not None:
            self._alarm.cancel()

    def _on_connect(
        self, client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._unanswered = 0
        self._answer_is_there()
        self._refused = False
        if reason.value == _UNSUPPORTED_PROTOCOL and self._may_switch(client):
            self._switch_protocol("the broker refuses this version")
        elif reason.is_failure:
            self._refused = True
            advice = _ADVICE.get(reason.value)
            self._report(f"{self.where} refused the log-in: {reason}{f'; {advice}' if advice else ''}")
        else:
            self._problem = None
            self._switches = 0
            self.logins += 1
            self._connected.set()
            log.info("connected to the broker", broker=self.where, mqtt=self.protocol, tls=self._tls is not None)
            self.on_connected(properties if self.protocol == "5" else None)

    def _on_connect_fail(self, _client: mqtt.Client, _data: object) -> None:
        # paho passes no reason, but calls this while it handles the exception.
        error = sys.exc_info()[1]
        self._report(f"{self.where}: {_explain(error) if error else 'no connection'}")

    def _on_disconnect(
        self,
        client: mqtt.Client,
        _data: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: object,
    ) -> None:
        if client is not self._client:
            return  # the one that a change of protocol has replaced
        was_connected, was_answered = self._connected.is_set(), self._answered
        self._answer_is_there()
        self._connected.clear()
        self._ended.set()
        if was_connected:
            if reason.is_failure:
                why = str(reason)
                if flags.is_disconnect_packet_from_server:
                    why += f"; {_ADVICE[reason.value]}" if reason.value in _ADVICE else ""
                elif reason.value == _UNSPECIFIED:  # paho's word for a socket that was closed
                    why = f"closed; if it keeps happening, does another client use the id {self._client_id!r}?"
                self._report(f"{self.where}: connection lost: {why}")
            self.on_disconnected()
            if reason.is_failure and self.protocol == "3.1.1" and self._may_switch(client):
                self._switch_protocol("the next connection starts with MQTT 5 again")
        elif not was_answered and reason.is_failure:
            self._unanswered += 1
            self._report(
                f"{self.where} does not answer the log-in; is this the broker's MQTT port "
                f"{'with' if self._tls else 'without'} TLS?"
            )
            if self._unanswered >= _UNANSWERED_BEFORE_SWITCH and self._may_switch(client):
                self._switch_protocol("the broker does not answer this version")

    def _on_subscribe(
        self, _client: mqtt.Client, _data: object, _message_id: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.error("the broker refuses a subscription; check its access list", reason=str(reason))

    def _may_switch(self, client: mqtt.Client) -> bool:
        return client is self._client and self._settings.protocol == "auto"

    def _switch_protocol(self, why: str) -> None:
        """Go on with the other version; it needs a new client, as paho fixes the version when it makes one."""
        old, spoken = self._client, self.protocol
        v5, v311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
        self._protocol = v311 if self._protocol == v5 else v5
        self._unanswered = 0
        self._switches += 1
        log.info("changing the MQTT version", broker=self.where, was=spoken, now=self.protocol, why=why)
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


def _read_password(settings: MqttSettings) -> SecretStr | None:
    """The password as it is now."""
    file = settings.password_file
    if file is None:
        return settings.password
    try:
        return SecretStr(file.read_text(encoding="utf-8").rstrip("\r\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"mqtt.password_file = {file}: cannot be read: {type(error).__name__}") from error


def _tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Certificate and host name are always verified; there is no switch to turn that off."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"mqtt.tls.ca_file = {settings.ca_file}: not a readable PEM certificate: {error}"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Python 3.10's default too, unless openssl.cnf says otherwise
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


# In this order: the first class that fits.
_EXPLANATIONS: tuple[tuple[type[OSError], str], ...] = (
    (
        ssl.SSLCertVerificationError,
        "the broker's certificate is not trusted: {error.verify_message}; mqtt.tls.ca_file must hold its CA",
    ),
    (ssl.SSLError, "TLS failed: {error.reason}; is this the broker's TLS port?"),
    (
        ConnectionRefusedError,
        "nothing listens there; is the broker running, are mqtt.host and mqtt.port right?",
    ),
    (
        ConnectionResetError,
        "the broker broke the connection off; is this its port, with TLS exactly if mqtt.tls is set?",
    ),
    (socket.gaierror, "the host name is unknown; is mqtt.host right?"),
    (TimeoutError, "no answer; are mqtt.host and mqtt.port right, is a firewall in between?"),
)


def _explain(error: BaseException) -> str:
    for kind, words in _EXPLANATIONS:
        if isinstance(error, kind):
            return words.format(error=error)
    return str(error) or type(error).__name__
