"""Sends the station's messages: numbers them, keeps what must arrive, drops what may be dropped.

One thread does all the sending, a few messages ahead of the broker's acknowledgements: so a slow broker holds up
this thread only, and a distant one costs a round trip a few messages, not each. Alerts and their pictures wait in
the outbox, scores in a short queue that overflows at its old end.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions
from pydantic import ValidationError

from station.connection import Connection, Will, new_properties
from station.messages import Alert, Health, Message, Reply, Status, alert_frame_topic, alert_image_topic, utc_now
from station.outbox import LOOK_SECONDS, Outbox
from station.outbox_store import JPEG, PNG, Parcel
from station.settings import MqttSettings

log = structlog.get_logger(__name__)

SCORE_BACKLOG = 1000  # a minute of a fast line; a score that is older has lost its use
REPLY_BACKLOG = 64  # replies and snapshots; whoever asked has long given up on the oldest
WINDOW = 16  # messages sent and not acknowledged yet; below paho's own limit of 20
WINDOW_BYTES = 2**18  # and their size: what is urgent waits behind them on a slow line
HOLD_SECONDS = 30.0  # before an alert that the broker has refused is offered again
_GOODBYE_SECONDS = 0.4  # of close(): kept for "stopped" and the DISCONNECT packet
# Refusals that the broker's administrator can lift: not authorized, quota exceeded.
_PASSING = (0x87, 0x97)

_Kind = TypeVar("_Kind", bound=Message)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A parcel on its way.

    Attributes:
        login: the how-manieth log-in it was sent after. After another one paho sends it again by itself.
    """

    parcel: Parcel
    client: mqtt.Client
    login: int


class Publisher:
    """The station's voice on the broker, and its ear for commands.

    Attributes:
        connection: to ask whether it stands, and why not.
        on_command: called with every message on ``cmd/+``, in the network thread: it must be short and must not
            raise. Set it before ``start``; without it nothing is subscribed to.
        scores_dropped: how many scores a slow or absent broker cost.
    """

    def __init__(self, settings: MqttSettings, topic_prefix: str, client_id: str, session: str, outbox: Outbox) -> None:
        """Prepare; ``start`` connects.

        Args:
            settings: the broker.
            topic_prefix: levels before ``status``, ``alert`` …, without the final slash.
            client_id: unique among the broker's clients.
            session: id of this run, for the last will.
            outbox: keeps alerts and pictures.

        Raises:
            SettingsError: a TLS file or the password file cannot be used.
        """
        self._prefix = topic_prefix
        offline = Status(state="offline", session=session)
        self.connection = Connection(settings, client_id, Will(f"{topic_prefix}/{Status.topic}", offline.payload()))
        self.connection.on_connected = self._on_connected
        self.connection.on_disconnected = self._on_disconnected
        self.connection.on_published = self._on_published
        self.on_command: Callable[[mqtt.MQTTMessage], None] | None = None
        self.scores_dropped = 0
        self._outbox = outbox
        self._order = threading.Lock()  # so that seq and the places in the queues agree
        self._seq = 0
        self._latest: dict[str, Parcel] = {}  # by topic, of what only the last counts: retained ones, health
        self._unsent: set[str] = set()  # topics of _latest that the broker does not have yet
        self._asked: deque[Parcel] = deque(maxlen=REPLY_BACKLOG)
        self._scores: deque[Parcel] = deque()
        self._flights: dict[int, _Flight] = {}  # by message id
        self._settled: list[tuple[Parcel, ReasonCode]] = []
        self._early: dict[int, ReasonCode] = {}  # acknowledged before publish() has told us the message id
        self._logins = 0
        self._window = WINDOW
        self._max_packet: int | None = None
        self._refusals: dict[str, str] = {}  # in words, of topics that the broker last refused; all pictures are one
        self._hold_until = 0.0
        self._closed = False
        self._changed = threading.Condition()  # guards all from _latest on; never held while the outbox writes
        self._thread = threading.Thread(target=self._send_all, name="publish", daemon=True)

    def start(self) -> None:
        """Start connecting and sending, in the background."""
        if self.on_command is not None:
            self.connection.on_message = self.on_command
        self.connection.start()
        self._thread.start()

    def publish(self, message: _Kind) -> _Kind:
        """Number a message that may be lost, and hand it over. Returns it as it will be sent."""
        with self._order:
            self._seq += 1
            numbered = message.model_copy(update={"seq": self._seq})
            topic = f"{self._prefix}/{message.topic}"
            parcel = _parcel(topic, numbered)
            with self._changed:
                if message.retain or isinstance(message, Health):
                    self._latest[topic] = parcel
                    self._unsent.add(topic)
                else:
                    self._scores.append(parcel)
                    if len(self._scores) > SCORE_BACKLOG:
                        self._scores.popleft()
                        self.scores_dropped += 1
                self._changed.notify_all()
        return numbered

    def publish_alert(self, alert: Alert, jpeg: bytes | None = None, png: bytes | None = None) -> Alert:
        """Number the alert and put it into the outbox, with its picture and its frame if it has any: all or none.

        Returns:
            The alert as it will be sent. With a working disk it is safe there.
        """
        with self._order:
            self._seq += 1
            numbered = alert.model_copy(update={"seq": self._seq})
            told = self._told(f"{self._prefix}/{alert.topic}", numbered)
            image = [self._pictured(alert.id, alert_image_topic(alert.id), jpeg, JPEG)] if jpeg is not None else []
            frame = [self._pictured(alert.id, alert_frame_topic(alert.id), png, PNG)] if png is not None else []
            self._outbox.put(told, *image, *frame)
        self._wake()
        return numbered

    def publish_reply(self, reply: Reply, response_topic: str | None, correlation: bytes | None) -> None:
        """Answer a command: on the topic that it named, else on ``reply/<verb>``. Lost if we are killed meanwhile."""
        with self._order:
            self._seq += 1
            numbered = reply.model_copy(update={"seq": self._seq})
            topic = response_topic or f"{self._prefix}/{reply.topic}/{reply.verb}"
            self._answer(_parcel(topic, numbered, correlation=correlation))

    def publish_volatile_image(self, topic_suffix: str, jpeg: bytes) -> None:
        """Hand over a picture that somebody asked for. Lost if we are killed meanwhile."""
        topic = f"{self._prefix}/{topic_suffix}"
        self._answer(Parcel(topic, jpeg, qos=1, content_type=JPEG, expiry=Reply.expiry, properties=()))

    def close_left_open(self) -> None:
        """Close the alerts that a killed run has told of: their defects have passed while nobody looked.

        The publish thread does it too, for an outbox that comes back late.
        """
        for left in self._outbox.left_open():
            try:
                alert = Alert.model_validate_json(left.payload)
            except ValidationError:
                log.exception("an alert of an earlier run cannot be read and stays open", id=left.id)
                self._outbox.forget(left)
                continue
            with self._order:
                self._seq += 1
                closing = {
                    "seq": self._seq,
                    "at": utc_now(),
                    "event": "close",
                    "dedupe_key": f"{alert.id}/close/{alert.last_frame}",
                }
                self._outbox.put(self._told(left.topic, alert.model_copy(update=closing)))
            self._wake()
            log.info("closed an alert that an earlier run left open", id=alert.id)

    @property
    def queued(self) -> dict[str, int]:
        """What waits for the broker, as ``Health.queued`` names it."""
        return {"scores": len(self._scores), "outbox": len(self._outbox), "outbox_bytes": self._outbox.bytes}

    @property
    def dropped(self) -> dict[str, int]:
        """What was lost since the start, as ``Health.dropped`` names it."""
        outbox = self._outbox
        return {"scores": self.scores_dropped, "alerts": outbox.dropped_alerts, "images": outbox.dropped_images}

    @property
    def refusal(self) -> str | None:
        """That the broker last refused what we sent, ``code: words``; None: it takes it."""
        return next(iter(self._refusals.values()), None)

    def drain(self, timeout: float) -> bool:
        """Wait until everything handed over has been sent; False if ``timeout`` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout)

    def close(self, last: Status | None, timeout: float) -> int:
        """Send what is left, then the last status, and disconnect; at most ``timeout`` seconds in all.

        With None, and where the last status does not get through, we leave without a goodbye: then the broker
        publishes the last will, ``offline``. The outbox stays open: it is its owner's to close.

        Returns:
            How many alerts and pictures the broker has not got.
        """
        deadline = time.monotonic() + timeout
        self.drain(max(0.0, timeout - _GOODBYE_SECONDS))
        with self._changed:
            self._scores.clear()
        if last is not None:
            self.publish(last)
        with self._changed:
            told = self._changed.wait_for(
                lambda: not self._unsent, max(0.0, deadline - _GOODBYE_SECONDS / 2 - time.monotonic())
            )
            self._closed = True
            self._changed.notify_all()
        if (told and last is not None) or not self.connection.connected:
            self.connection.stop(max(0.0, deadline - time.monotonic()))
        self._settle()
        return len(self._outbox)

    @staticmethod
    def _told(topic: str, alert: Alert) -> Parcel:
        key = alert.dedupe_key
        return _parcel(topic, alert, ("dedupe_key", key), key=key, alert=alert.id, closes=alert.event == "close")

    def _pictured(self, alert_id: str, topic: str, picture: bytes, content_type: str) -> Parcel:
        what = topic.rpartition("/")[2]
        key = f"{alert_id}/{what}/{hashlib.sha256(picture).hexdigest()[:16]}"
        return Parcel(
            topic=f"{self._prefix}/{topic}",
            payload=picture,
            qos=1,
            content_type=content_type,
            expiry=Alert.expiry,
            properties=(("alert", alert_id), ("dedupe_key", key)),
            key=key,
        )

    def _answer(self, parcel: Parcel) -> None:
        with self._changed:
            self._asked.append(parcel)
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # --- the network thread ---

    def _on_connected(self, properties: Properties | None) -> None:
        client = self.connection.client
        with self._changed:
            self._logins = self.connection.logins
            self._max_packet = getattr(properties, "MaximumPacketSize", None)
            self._window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
            # paho sends what it was told with QoS 1 again, unless it was another client, of the other MQTT version.
            lost = [
                mid for mid, flight in self._flights.items() if flight.client is not client or not flight.parcel.qos
            ]
            for mid in lost:
                parcel = self._flights.pop(mid).parcel
                self.scores_dropped += parcel.qos == 0 and parcel.topic not in self._latest
            # Whatever the broker has on record is from before: the last will, or nothing if it has restarted.
            self._unsent.update(topic for topic, parcel in self._latest.items() if parcel.retain)
            self._changed.notify_all()
        if self.on_command is not None:
            topic = f"{self._prefix}/cmd/+"
            if client.protocol == mqtt.MQTTv5:  # "as published": so that retained commands can be told and refused
                client.subscribe(topic, options=SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True))
            else:
                client.subscribe(topic, qos=1)

    def _on_disconnected(self) -> None:
        self._wake()

    def _on_published(self, message_id: int, reason: ReasonCode) -> None:
        with self._changed:
            flight = self._flights.pop(message_id, None)
            if flight is not None:
                self._settled.append((flight.parcel, reason))
            else:
                self._early[message_id] = reason
            self._changed.notify_all()

    # --- the publish thread ---

    def _send_all(self) -> None:
        while True:
            self._outbox.tend()
            self.close_left_open()
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._settled or self._may_send(), LOOK_SECONDS)
                if self._closed:
                    return
            self._settle()
            parcel = self._next()
            if parcel is not None:
                self._send(parcel)

    def _is_idle(self) -> bool:
        return not (
            self._unsent or self._asked or self._scores or self._flights or self._settled or len(self._outbox) > 0
        )

    def _may_send(self) -> bool:
        """Whether something waits and may go now."""
        flights = self._flights.values()
        if not self.connection.connected or len(flights) >= self._window:
            return False
        if self.connection.logins != self._logins:
            return False  # _on_connected is still to come, and would take what went before it for lost
        if sum(len(flight.parcel.payload) for flight in flights) >= WINDOW_BYTES:
            return False
        if any(flight.login != self._logins for flight in flights):
            return False  # what paho sends again goes first, or the order would be lost
        if self._asked or self._scores or self._state_to_send() is not None:
            return True
        return self._more_in_outbox()

    def _more_in_outbox(self) -> bool:
        return len(self._outbox) > len(self._sent_keys()) and time.monotonic() >= self._hold_until

    def _sent_keys(self) -> list[str]:
        """Of the outbox's parcels, those on their way and those that arrived and are not yet let go."""
        sent = [flight.parcel.key for flight in self._flights.values()] + [parcel.key for parcel, _ in self._settled]
        return [key for key in sent if key]

    def _state_to_send(self) -> Parcel | None:
        sent = [flight.parcel for flight in self._flights.values()] + [parcel for parcel, _ in self._settled]
        for topic, parcel in self._latest.items():
            if topic in self._unsent and parcel not in sent:
                return parcel
        return None

    def _next(self) -> Parcel | None:
        """What to send next: the state, then answers, then alerts, then scores."""
        with self._changed:
            if not self._may_send():
                return None
            if (state := self._state_to_send()) is not None:
                return state
            if self._asked:
                return self._asked.popleft()
            sent = self._sent_keys()
            more = self._more_in_outbox()
        if more and (kept := self._outbox.first(sent)) is not None:
            return kept
        with self._changed:
            return self._scores.popleft() if self._scores else None

    def _send(self, parcel: Parcel) -> None:
        client = self.connection.client
        if self._max_packet is not None and len(parcel.payload) + 1024 > self._max_packet:
            log.error("too large for the broker", topic=parcel.topic, bytes=len(parcel.payload), limit=self._max_packet)
            self._outbox.drop(parcel)
            with self._changed:
                self._arrived(parcel)
            return
        with self._changed:
            self._early.clear()  # what is left here answers nobody
            login = self._logins
        info = client.publish(
            parcel.topic, parcel.payload, parcel.qos, parcel.retain, properties=_properties(parcel, client)
        )
        with self._changed:
            if info.rc == mqtt.MQTT_ERR_NO_CONN and parcel.qos == 0:
                if parcel.topic not in self._latest:
                    self._scores.appendleft(parcel)
            elif info.mid in self._early:
                self._settled.append((parcel, self._early.pop(info.mid)))
            else:
                self._flights[info.mid] = _Flight(parcel, client, login)

    def _settle(self) -> None:
        """See to what was acknowledged."""
        with self._changed:
            settled, self._settled = self._settled, []
        for parcel, reason in settled:
            if reason.is_failure:
                self._refused(parcel, reason)
            else:
                if parcel.key:
                    self._outbox.done(parcel)
                self._refusals.pop(_kind(parcel), None)
        with self._changed:
            for parcel, _ in settled:
                self._arrived(parcel)
            self._changed.notify_all()

    def _refused(self, parcel: Parcel, reason: ReasonCode) -> None:
        """The broker has the message and does not want it: an alert waits until it may, anything else goes."""
        held = bool(parcel.key) and not parcel.is_image and reason.value in _PASSING
        if not held:
            self._outbox.drop(parcel)
        if not held or time.monotonic() >= self._hold_until:
            log.error("the broker refuses a message; check its access list", topic=parcel.topic, reason=str(reason))
        if held:
            self._hold_until = time.monotonic() + HOLD_SECONDS
        # A response topic is the sender's choice; that we may not write there is no fault of the station.
        if parcel.topic.startswith(f"{self._prefix}/"):
            self._refusals[_kind(parcel)] = f"broker-refuses: {parcel.topic}: {reason}; check the broker's access list"

    def _arrived(self, parcel: Parcel) -> None:
        if self._latest.get(parcel.topic) is parcel:
            self._unsent.discard(parcel.topic)


def _parcel(
    topic: str,
    message: Message,
    *properties: tuple[str, str],
    correlation: bytes | None = None,
    key: str = "",
    alert: str = "",
    closes: bool = False,
) -> Parcel:
    return Parcel(
        topic=topic,
        payload=message.payload(),
        qos=message.qos,
        retain=message.retain,
        expiry=message.expiry,
        properties=(("schema", message.schema_), *properties),
        correlation=correlation,
        key=key,
        alert=alert,
        closes=closes,
    )


def _kind(parcel: Parcel) -> str:
    return "image" if parcel.is_image else parcel.topic


def _properties(parcel: Parcel, client: mqtt.Client) -> Properties | None:
    if client.protocol != mqtt.MQTTv5:
        return None
    properties = new_properties(PacketTypes.PUBLISH)
    properties.ContentType = parcel.content_type
    properties.PayloadFormatIndicator = int(parcel.content_type == "application/json")
    if parcel.expiry is not None:
        properties.MessageExpiryInterval = int(parcel.expiry.total_seconds())
    if parcel.properties:
        properties.UserProperty = list(parcel.properties)
    if parcel.correlation is not None:
        properties.CorrelationData = parcel.correlation
    return properties
