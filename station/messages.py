"""Everything that goes over the wire, as models. Topics are listed in docs/integration.md.

All times are UTC in RFC 3339. Every message carries ``schema`` (``station/v1/<kind>``) and ``seq``, which counts
the messages of this session from 1, so that a subscriber sees what it missed.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_PREFIX = "station/v1"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    seq: int = Field(ge=1, description="Counts the messages of this session.")
    at: datetime = Field(description="When the message was made, UTC.")


class Rectangle(BaseModel):
    """A rectangle in frame pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    x: int
    y: int
    w: int
    h: int


class Status(_Message):
    """Retained on ``status``; the last will is ``offline``."""

    schema_: Literal["station/v1/status"] = Field(default="station/v1/status", alias="schema")
    state: Literal["online", "degraded", "stopped", "offline"]
    reasons: tuple[str, ...] = Field(default=(), description="Why it is degraded, in words.")
    session: str = Field(description="Id of this run of the daemon.")


class Info(_Message):
    """Retained on ``info``: what runs here."""

    schema_: Literal["station/v1/info"] = Field(default="station/v1/info", alias="schema")
    session: str
    version: str
    bundle_name: str
    bundle_sha256: str
    engine_backend: str
    engine_device: str
    engine_precision: str
    threshold: float
    calibrated_at: datetime | None
    camera_url: str = Field(description="Without user name and password.")
    frame_width: int | None
    frame_height: int | None


class Score(_Message):
    """On ``score``, one per frame, QoS 0."""

    schema_: Literal["station/v1/score"] = Field(default="station/v1/score", alias="schema")
    frame: int = Field(description="Frame number since the daemon started; gaps are dropped frames.")
    captured_at: datetime
    score: float
    threshold: float
    anomalous: bool
    latency_ms: dict[str, float] = Field(description="Milliseconds by stage: wait, prepare, infer, judge, total.")
    name: str = Field(default="", description="File the frame came from, for folder: sources.")


class Alert(_Message):
    """On ``alert``, QoS 1. One physical defect is one ``id``."""

    schema_: Literal["station/v1/alert"] = Field(default="station/v1/alert", alias="schema")
    event: Literal["open", "update", "close"]
    id: str
    dedupe_key: str = Field(description="Same key: same message, delivered again.")
    opened_at: datetime
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
