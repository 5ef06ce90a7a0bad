"""Sends the station's messages: numbers them, keeps what must arrive, drops what may be dropped.

One thread does all the sending, one message at a time, each until it has left (QoS 0) or was acknowledged (QoS 1):
so a slow broker holds up this thread only. Alerts wait for it in the outbox, scores in a short queue that
overflows at its old end.
"""

import threading
import time
from collections import deque
from typing import TypeVar

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from station.connection import Connection, Will, new_properties
from station.messages import Alert, Message, Status, alert_image_topic
from station.outbox import Outbox, Parcel
from station.settings import MqttSettings

log = structlog.get_logger(__name__)

SCORE_BACKLOG = 1000  # a minute of a fast line; a score that is older has lost its use
_GOODBYE_SECONDS = 0.4  # of close(): kept for "stopped" and the DISCONNECT packet

_Kind = TypeVar("_Kind", bound=Message)


class Publisher:
    """The station's voice on the broker.

    Attributes:
        connection: to ask whether it stands, and why not.
        scores_dropped: how many scores a slow or absent broker cost.
    """

    def __init__(self, settings: MqttSettings, topic_prefix: str, client_id: str, session: str) -> None:
        """Prepare; ``start`` connects.

        Args:
            settings: the broker.
            topic_prefix: levels before ``status``, ``alert`` …, without the final slash.
            client_id: unique among the broker's clients.
            session: id of this run, for the last will.

        Raises:
            SettingsError: a TLS file cannot be used.
        """
        self._prefix = topic_prefix
        offline = Status(state="offline", session=session)
        self.connection = Connection(settings, client_id, Will(f"{topic_prefix}/{Status.topic}", offline.payload()))
        self.connection.on_connected = self._on_connected
        self.connection.on_disconnected = self._on_disconnected
        self.connection.on_published = self._on_published
        self.scores_dropped = 0
        self._seq = 0
        self._outbox = Outbox()
        self._scores: deque[Parcel] = deque()
        self._retained: dict[str, Parcel] = {}  # the last of each topic, sent again after every log-in
        self._unsent: set[str] = set()  # topics of _retained that the broker does not have yet
        self._acknowledged: dict[int, ReasonCode] = {}
        self._max_packet: int | None = None
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above
        self._thread = threading.Thread(target=self._send_all, name="publish", daemon=True)

    def start(self) -> None:
        """Start connecting and sending, in the background."""
        self.connection.start()
        self._thread.start()

    def publish(self, message: _Kind) -> _Kind:
        """Number the message and hand it over; never waits for the broker. Returns it as it will be sent."""
        with self._changed:
            self._seq += 1
            numbered = message.model_copy(update={"seq": self._seq})
            parcel = Parcel(
                topic=f"{self._prefix}/{message.topic}",
                payload=numbered.payload(),
                qos=message.qos,
                retain=message.retain,
                expiry=message.expiry,
                properties=(("schema", message.schema_),),
            )
            if message.retain:
                self._retained[parcel.topic] = parcel
                self._unsent.add(parcel.topic)
            elif message.qos == 1:
                self._outbox.put(parcel)
            else:
                self._scores.append(parcel)
                if len(self._scores) > SCORE_BACKLOG:
                    self._scores.popleft()
                    self.scores_dropped += 1
            self._changed.notify_all()
        return numbered

    def publish_image(self, alert_id: str, jpeg: bytes) -> None:
        """Hand over the picture of an alert."""
        with self._changed:
            self._outbox.put(
                Parcel(
                    topic=f"{self._prefix}/{alert_image_topic(alert_id)}",
                    payload=jpeg,
                    qos=1,
                    content_type="image/jpeg",
                    expiry=Alert.expiry,
                    properties=(("alert", alert_id),),
                )
            )
            self._changed.notify_all()

    @property
    def alerts_dropped(self) -> int:
        """Alerts and pictures lost because the outbox was full."""
        return self._outbox.dropped

    def drain(self, timeout: float) -> bool:
        """Wait until everything handed over has been sent; False if ``timeout`` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting() is None, timeout)

    def close(self, last: Status | None, timeout: float) -> int:
        """Send what is left, then the last status, and disconnect; at most ``timeout`` seconds in all.

        With None, and where the last status does not get through, we leave without a goodbye: then the broker
        publishes the last will, ``offline``.

        Returns:
            How many alerts and pictures did not get to the broker.
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
        return len(self._outbox)

    # --- the network thread ---

    def _on_connected(self, properties: Properties | None) -> None:
        with self._changed:
            self._max_packet = getattr(properties, "MaximumPacketSize", None)
            # Whatever the broker has on record is from before: the last will, or nothing if it has restarted.
            self._unsent.update(self._retained)
            self._changed.notify_all()

    def _on_disconnected(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_published(self, message_id: int, reason: ReasonCode) -> None:
        with self._changed:
            self._acknowledged[message_id] = reason
            self._changed.notify_all()

    # --- the publish thread ---

    def _waiting(self) -> Parcel | None:
        """What to send next: the retained, then alerts, then scores."""
        for topic in self._retained:
            if topic in self._unsent:
                return self._retained[topic]
        return self._outbox.first() or (self._scores[0] if self._scores else None)

    def _next(self) -> Parcel | None:
        return self._waiting() if self.connection.connected else None

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                if self._closed:
                    return
                parcel = self._next()
            if parcel is not None and self._send(parcel):
                self._done(parcel)

    def _send(self, parcel: Parcel) -> bool:
        """Send one parcel; True when it is settled, False when it has to be sent again."""
        client = self.connection.client
        if self._max_packet is not None and len(parcel.payload) + 1024 > self._max_packet:
            log.error("too large for the broker", topic=parcel.topic, bytes=len(parcel.payload), limit=self._max_packet)
            return True
        with self._changed:
            self._acknowledged.clear()  # one message at a time: what is left here answers nobody
        info = client.publish(
            parcel.topic, parcel.payload, parcel.qos, parcel.retain, properties=_properties(parcel, client)
        )
        if info.rc == mqtt.MQTT_ERR_NO_CONN and parcel.qos == 0:
            return False
        with self._changed:
            # paho itself sends a QoS 1 message again after a reconnect, and the answer then comes with the same id.
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or info.mid in self._acknowledged
                    or self.connection.client is not client
                    or (parcel.qos == 0 and not self.connection.connected)
                )
            )
            reason = self._acknowledged.pop(info.mid, None)
        if reason is not None and reason.is_failure:
            log.error("the broker refuses a message; check its access list", topic=parcel.topic, reason=str(reason))
        return reason is not None

    def _done(self, parcel: Parcel) -> None:
        with self._changed:
            if self._retained.get(parcel.topic) is parcel:
                self._unsent.discard(parcel.topic)
            if self._scores and self._scores[0] is parcel:
                self._scores.popleft()
            self._outbox.done(parcel)
            self._changed.notify_all()


def _properties(parcel: Parcel, client: mqtt.Client) -> Properties | None:
    if client.protocol != mqtt.MQTTv5:
        return None
    properties = new_properties(PacketTypes.PUBLISH)
    properties.ContentType = parcel.content_type
    properties.PayloadFormatIndicator = int(parcel.content_type == "application/json")
    if parcel.expiry is not None:
        properties.MessageExpiryInterval = int(parcel.expiry.total_seconds())
    properties.UserProperty = list(parcel.properties)
    return properties
