"""An operator's desk: a client that hears everything and sends commands."""

import itertools
import time
from types import TracebackType

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from typing_extensions import Self

from station.messages import Reply, Score
from tests.support.mosquitto import Subscriber


class Desk(Subscriber):
    """``with Desk(broker.port, prefix) as desk: desk.ask("pause")``."""

    def __init__(
        self, port: int, prefix: str, *, protocol: int = mqtt.MQTTv5, login: tuple[str, str] | None = None
    ) -> None:
        super().__init__(port, protocol=protocol, login=login)
        self.prefix = prefix
        self._protocol = protocol
        self._numbers = itertools.count(1)
        self._name = f"desk-{time.time_ns()}"

    def send(
        self,
        verb: str,
        payload: bytes = b"",
        *,
        to: str | None = None,
        correlation: bytes | None = None,
        expiry: int | None = None,
        retain: bool = False,
        qos: int = 1,
    ) -> mqtt.MQTTMessageInfo:
        """Publish a command; with ``to``, ``correlation`` and ``expiry`` in MQTT 5 only."""
        properties = None
        if self._protocol == mqtt.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)
            if to is not None:
                properties.ResponseTopic = to
            if correlation is not None:
                properties.CorrelationData = correlation
            if expiry is not None:
                properties.MessageExpiryInterval = expiry
        return self._client.publish(f"{self.prefix}/cmd/{verb}", payload, qos, retain, properties=properties)

    def ask(self, verb: str, payload: bytes = b"", *, correlation: bytes | None = None, **options: int | bool) -> Reply:
        """Send a command and wait for its answer on this desk's own topic."""
        correlation = f"{self._name} {next(self._numbers)}".encode() if correlation is None else correlation
        before = len(self.answers(correlation))
        self.send(verb, payload, to=f"{self.prefix}/reply/desk", correlation=correlation, **options)
        self.wait_for(lambda _: len(self.answers(correlation)) > before)
        return self.answers(correlation)[-1]

    def answers(self, correlation: bytes) -> list[Reply]:
        """Replies heard so far with this correlation data."""
        with self._changed:
            return [
                Reply.model_validate_json(message.payload)
                for message in self.heard
                if "/reply/" in message.topic and getattr(message.properties, "CorrelationData", None) == correlation
            ]

    def replies(self, verb: str) -> list[Reply]:
        """Heard so far on the shared ``reply/<verb>``."""
        return [Reply.model_validate_json(payload) for payload in self.on(f"/reply/{verb}")]

    def next_score(self) -> Score:
        """A score of a frame that was captured from now on."""
        heard = len(self.on("/score"))
        self.wait_for(lambda _: len(self.on("/score")) > heard + 2, timeout=40)
        return Score.model_validate_json(self.on("/score")[-1])

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
