"""Everything that goes over the wire, as models. Topics are listed in docs/integration.md.

All times are UTC in RFC 3339. Every message carries ``schema`` (``station/v1/<kind>``) and ``seq``, which counts
the messages of this session from 1, so that a subscriber sees what it missed.
"""

from datetime import datetime, timedelta, timezone
from typing import Annotated, ClassVar, Literal, get_args

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


class ScoredPatch(Rectangle):
    """A patch in frame pixels, and its score."""

    score: float


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


MAX_PATCHES = 64
"""Patches that an alert tells."""


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
    peak_boxes: tuple[Rectangle, ...] = Field(
        default=(), description="Where it is in the frame with the peak score, which the picture shows; frame pixels."
    )
    frame_width: int
    frame_height: int
    name: str = Field(default="", description="File of the frame with the peak score, for folder: sources.")
    image_topic: str | None = Field(default=None, description="Where the JPEG is published.")
    patches: tuple[ScoredPatch, ...] = Field(
        default=(),
        max_length=MAX_PATCHES,
        description="The highest-scoring patches of the frame with the peak score, highest first, frame pixels; "
        "empty where an earlier message of this alert has told them.",
    )
    frame_topic: str | None = Field(
        default=None,
        description="In `close`: where that frame is published as the camera gave it (alerts.frame), lossless PNG.",
    )


class CameraHealth(BaseModel):
    """How the camera does."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    connected: bool
    fault: str | None = Field(
        description="What is wrong, `code: words`; null: nothing. The codes are in docs/reliability.md."
    )
    frames: int = Field(description="Frames read since the daemon started.")
    reconnects: int
    fps: float | None = Field(description="Frames per second since the last health message.")
    brightness: float | None = Field(description="Mean grey value of the last frame, 0..255.")
    sharpness: float | None = Field(description="Of the last frame; calibration.json holds the healthy range.")
    noise: float | None = Field(description="Of the last frame, grey values; calibration.json holds the healthy range.")


class DriftHealth(BaseModel):
    """The scores of late beside those of the calibration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    state: Literal["unknown", "stable", "drift"] = Field(
        description="`unknown`: no calibration, or too few frames yet."
    )
    direction: Literal["higher", "lower", "wider"] | None = Field(description="Where the scores went; null: nowhere.")
    effect: float | None = Field(
        description="Probability that a frame of late outscores a calibration frame (ties count half): 0.5 is no drift."
    )
    p_value: float | None = Field(
        description="Of the two-sample test, for as many independent frames as these are worth."
    )
    frames: int = Field(description="Frames in the window.")


class StageTimes(BaseModel):
    """Milliseconds that a stage took, over the frames since the last health message."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    p50: float
    p99: float


class Health(Message):
    """On ``health``, every ``health.interval`` seconds."""

    topic = "health"
    qos = 0

    schema_: Literal["station/v1/health"] = Field(default="station/v1/health", alias="schema")
    session: str
    state: Literal["online", "degraded"] | None = Field(description="As on `status`; null: still starting.")
    reasons: tuple[str, ...] = ()
    uptime_s: float
    inspected: int = Field(description="Frames inspected since the daemon started.")
    camera: CameraHealth
    drift: DriftHealth
    stages_ms: dict[str, StageTimes] = Field(description="By stage: wait, prepare, infer, judge, total.")
    queued: dict[str, int] = Field(description="Waiting now: frames, scores, outbox (messages), outbox_bytes.")
    dropped: dict[str, int] = Field(description="Lost since the daemon started: frames, scores, alerts, images.")
    temperatures_c: dict[str, float] = Field(description="By thermal zone of the device.")
    resident_bytes: int = Field(description="Memory of the daemon.")


Verb = Literal["pause", "resume", "snapshot", "set-threshold", "reload"]
VERBS: tuple[Verb, ...] = get_args(Verb)


class Command(BaseModel):
    """What ``cmd/<verb>`` may carry; an empty payload is an empty object."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="For MQTT 3.1.1, which has no correlation data: a command with a known id is not done again.",
    )
    by: str = Field(default="", max_length=100, description="Who asks; a claim, recorded as such.")
    expires_at: Utc | None = Field(
        default=None, description="Not to be done later; MQTT 5's message expiry counts as well."
    )


class SetThreshold(Command):
    """``cmd/set-threshold``."""

    by: str = Field(min_length=1, max_length=100, description="Who asks; recorded with the change.")
    threshold: float = Field(gt=0, le=1e9)


class Reply(Message):
    """On ``reply/<verb>``, or the command's response topic with its correlation data (MQTT 5)."""

    topic = "reply"
    qos = 1
    expiry = timedelta(minutes=1)

    schema_: Literal["station/v1/reply"] = Field(default="station/v1/reply", alias="schema")
    verb: str
    ok: bool
    error: str | None = Field(default=None, description="Why not, in words.")
    id: str | None = Field(default=None, description="The command's.")
    result: dict[str, str | float | None] = Field(default_factory=dict, description="By verb; see docs/integration.md.")


class Feedback(Message):
    """On ``feedback``: what a person says of an alert. The last one of an alert counts.

    It comes from whoever shows alerts to people, not from the station: ``seq`` counts the sender's messages.
    """

    topic = "feedback"
    qos = 1
    expiry = timedelta(days=7)

    schema_: Literal["station/v1/feedback"] = Field(default="station/v1/feedback", alias="schema")
    alert: str = Field(min_length=1, max_length=64, description="Its id.")
    verdict: Literal["false-alarm", "confirmed", "withdrawn"] = Field(
        description="`withdrawn`: what was said before does not hold."
    )
    by: str = Field(min_length=1, max_length=100, description="Who says so; a claim, recorded as such.")
    note: str = Field(default="", max_length=500)


MESSAGES: tuple[type[Message], ...] = (Status, Info, Score, Alert, Health, Reply, Feedback)


def alert_image_topic(alert_id: str) -> str:
    """Topic of an alert's JPEG, below the station's prefix."""
    return f"alert/{alert_id}/image"


def alert_frame_topic(alert_id: str) -> str:
    """Topic of the frame that an alert's picture shows, as the camera gave it, below the station's prefix."""
    return f"alert/{alert_id}/frame"


def snapshot_topic(snapshot_id: str) -> str:
    """Topic of a snapshot's JPEG, below the station's prefix."""
    return f"snapshot/{snapshot_id}/image"
