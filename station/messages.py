"""Everything that goes over the wire, as models. Topics are listed in docs/integration.md.

All times are UTC in RFC 3339. Every message carries ``schema`` (``station/v1/<kind>``) and ``seq``, which counts
the messages of this session from 1, so that a subscriber sees what it missed.
"""

from datetime import datetime, timedelta, timezone
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field


def _utc(value: datetime) -> datetime:
    return value.astimezone(timezone.utc)


def utc_now() -> datetime:
    """The current time, UTC."""
    return datetime.now(timezone.utc)


Utc = Annotated[AwareDatetime, AfterValidator(_utc)]


class Message(BaseModel):
    """What all messages have: their place in the session and, by class, their topic and how they are sent.

    ``seq`` 0 means "not sent yet": the publisher numbers messages as it takes them. The last will keeps 0, because
    it is the broker that sends it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    topic: ClassVar[str]
    qos: ClassVar[Literal[0, 1]]
    retain: ClassVar[bool] = False
    expiry: ClassVar[timedelta | None] = None  # how long a broker keeps it for a subscriber who is away (MQTT 5)

    schema_: str = Field(alias="schema")
    seq: int = Field(default=0, ge=0, description="Counts the messages of this session from 1; 0 in the last will.")
    at: Utc = Field(default_factory=utc_now, description="When the message was made, UTC.")

    def payload(self) -> bytes:
        """JSON as it goes over the wire."""
        return self.model_dump_json(by_alias=True).encode()


class Rectangle(BaseModel):
    """A rectangle in frame pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    x: int
    y: int
    w: int
    h: int


class Status(Message):
    """Retained on ``status``; the last will is ``offline``."""

    topic = "status"
    qos = 1
    retain = True

    schema_: Literal["station/v1/status"] = Field(default="station/v1/status", alias="schema")
    state: Literal["online", "degraded", "stopped", "offline"]
    reasons: tuple[str, ...] = Field(default=(), description="Why it is degraded, in words.")
    session: str = Field(description="Id of this run of the daemon.")


class Info(Message):
    """Retained on ``info``: what runs here."""

    topic = "info"
    qos = 1
    retain = True

    schema_: Literal["station/v1/info"] = Field(default="station/v1/info", alias="schema")
    session: str
    version: str
    bundle_name: str
    bundle_sha256: str
    engine_backend: str
    engine_device: str
    engine_precision: str
    threshold: float
    calibrated_at: Utc | None
    camera_url: str = Field(description="Without user name and password.")
    frame_width: int | None
    frame_height: int | None


class Score(Message):
    """On ``score``, one per frame, QoS 0."""

    topic = "score"
    qos = 0

    schema_: Literal["station/v1/score"] = Field(default="station/v1/score", alias="schema")
    frame: int = Field(description="Frame number since the daemon started; gaps are dropped frames.")
    captured_at: Utc
    score: float
    threshold: float
    anomalous: bool
    latency_ms: dict[str, float] = Field(description="Milliseconds by stage: wait, prepare, infer, judge, total.")
    name: str = Field(default="", description="File the frame came from, for folder: sources.")


class Alert(Message):
    """On ``alert``, QoS 1. One physical defect is one ``id``."""

    topic = "alert"
    qos = 1
    expiry = timedelta(days=1)

    schema_: Literal["station/v1/alert"] = Field(default="station/v1/alert", alias="schema")
    event: Literal["open", "update", "close"]
    id: str
    dedupe_key: str = Field(description="Same key: same message, delivered again.")
    opened_at: Utc
    first_frame: int
    last_frame: int
    score: float = Field(description="Score of this defect in the last frame it was seen in.")
    peak_score: float
    threshold: float
    boxes: tuple[Rectangle, ...] = Field(description="Where it was last seen, frame pixels.")
    frame_width: int
    frame_height: int
    name: str = Field(default="", description="File of the frame with the peak score, for folder: sources.")
    image_topic: str | None = Field(default=None, description="Where the JPEG is published.")


MESSAGES: tuple[type[Message], ...] = (Status, Info, Score, Alert)


def alert_image_topic(alert_id: str) -> str:
    """Topic of an alert's JPEG, below the station's prefix."""
    return f"alert/{alert_id}/image"
