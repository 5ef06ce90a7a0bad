"""The plant's side of a station: software that must not miss an alert, and defects that pass one after the other."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.bundles import GREY
from tests.support.mosquitto import HOST, Client

HEIGHT, WIDTH = 96, 128
SLOT = 32  # pixels; a defect takes one of four places


@dataclass(frozen=True)
class Heard:
    """A message as it came.

    Attributes:
        key: its dedupe key.
    """

    topic: str
    payload: bytes
    key: str


class Ledger(Client):
    """A subscriber with a persistent session: what comes while it or the broker is away, it gets later."""

    def __init__(self, port: int, topic: str, login: tuple[str, str] | None = None) -> None:
        self.heard: list[Heard] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._port = port
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="ledger", protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        if login:
            self._client.username_pw_set(*login)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._take

    def wait_for(self, found: Callable[[list[Heard]], object], timeout: float = 60.0) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: found(self.heard), timeout):
                raise AssertionError(f"not heard among {len(self.heard)} messages")

    def once(self, suffix: str) -> dict[str, Heard]:
        """By dedupe key, in the order of their first coming: what a subscriber keeps that dedupes."""
        found: dict[str, Heard] = {}
        with self._changed:
            for message in self.heard:
                if message.topic.endswith(suffix):
                    first = found.setdefault(message.key, message)
                    assert first == message, f"one key, two messages: {message.key}"
        return found

    def _take(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.heard.append(Heard(message.topic, message.payload, _dedupe_key(message)))
            self._changed.notify_all()

    def _connect(self) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self._client.connect(HOST, self._port, clean_start=False, properties=properties)


def _dedupe_key(message: mqtt.MQTTMessage) -> str:
    properties = dict(getattr(message.properties, "UserProperty", []))
    if "dedupe_key" in properties:
        return str(properties["dedupe_key"])
    # Sent with MQTT 3.1.1, which has no properties: as docs/decisions/0040-outbox.md tells a subscriber to do.
    if message.topic.endswith("/alert"):
        return str(json.loads(message.payload)["dedupe_key"])
    return f"{message.topic} {hashlib.sha256(message.payload).hexdigest()}"


@dataclass(frozen=True)
class Defect:
    """One that passed.

    Attributes:
        seen: UNIX times at which its first and its last picture were taken.
        slot: where, 0..3 from left to right.
    """

    seen: list[float]
    slot: int


class Belt:
    """Pictures for MjpegServer: grey with a sensor's noise, and a defect for so many of so many pictures."""

    def __init__(self, period: int = 30, visible: int = 12) -> None:
        self.period, self.visible = period, visible
        self.running = True
        self.defects: dict[int, Defect] = {}

    def picture(self, number: int) -> np.ndarray:
        image = np.full((HEIGHT, WIDTH, 3), GREY, np.int16)
        which, phase = divmod(number, self.period)
        if self.running and phase < self.visible:
            slot = which % 4
            image[24:48, slot * SLOT + 4 : slot * SLOT + 24] = 20
            now = time.time()
            defect = self.defects.setdefault(which, Defect([now, now], slot))
            defect.seen[1] = now
        noise = np.random.default_rng(number).integers(-2, 3, (HEIGHT, WIDTH, 1))
        return np.clip(image + noise, 0, 255).astype(np.uint8)
