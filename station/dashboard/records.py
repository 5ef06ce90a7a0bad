"""What the dashboard knows of one alert, put together from the messages and pictures that tell of it. Pure."""

import math
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from station.messages import Alert, Feedback, Rectangle, ScoredPatch, Utc

MAX_BOXES = 100  # told; a station tells a handful


class ScoreRow(NamedTuple):
    """The highest score of a span of time.

    Attributes:
        time: UNIX seconds of its start.
    """

    station: str
    time: int
    score: float
    threshold: float


class Judgement(BaseModel):
    """What a person said of it.

    Attributes:
        published: whether the broker has it.
    """

    model_config = ConfigDict(frozen=True)

    verdict: Literal["false-alarm", "confirmed", "withdrawn"]
    by: str
    note: str
    at: Utc
    published: bool = True

    @classmethod
    def of(cls, message: Feedback, *, published: bool = True) -> "Judgement":
        """From its message."""
        return cls(verdict=message.verdict, by=message.by, note=message.note, at=message.at, published=published)


class AlertRecord(BaseModel):
    """All that is known of one alert, but for the bytes of its pictures.

    Attributes:
        station: ``site/line/name``.
        image: version of its picture; a later one of the same alert has another. None: there is none.
        frame: the same of the frame as the camera gave it.
    """

    model_config = ConfigDict(frozen=True)

    station: str
    id: str
    state: Literal["open", "closed"]
    opened_at: Utc
    updated_at: Utc
    closed_at: Utc | None = None
    first_frame: int
    last_frame: int
    score: float
    peak_score: float
    threshold: float
    boxes: tuple[Rectangle, ...]
    peak_boxes: tuple[Rectangle, ...] = ()
    patches: tuple[ScoredPatch, ...] = ()
    frame_width: int
    frame_height: int
    name: str = ""
    image: str | None = None
    frame: str | None = None
    feedback: Judgement | None = None

    @property
    def verdict(self) -> str:
        """What was said of it and holds; "" where nothing does."""
        return self.feedback.verdict if self.feedback and self.feedback.verdict != "withdrawn" else ""

    @property
    def path(self) -> str:
        """As in addresses: station and id."""
        return f"{self.station}/{self.id}"

    def ended(self) -> "AlertRecord":
        """As closed when it was last told of: its station has gone without closing it."""
        return self.model_copy(update={"state": "closed", "closed_at": self.updated_at})

    def view(self, *, patches: bool = True) -> dict[str, Any]:
        """As the page gets it; lists do without the patches."""
        said = self.feedback if self.verdict else None
        return {
            "station": self.station,
            "id": self.id,
            "state": self.state,
            "opened_at": stamp(self.opened_at),
            "updated_at": stamp(self.updated_at),
            "closed_at": stamp(self.closed_at),
            "first_frame": self.first_frame,
            "last_frame": self.last_frame,
            "score": self.score,
            "peak_score": self.peak_score,
            "threshold": self.threshold,
            "boxes": [box.model_dump() for box in self.boxes],
            "peak_boxes": [box.model_dump() for box in self.peak_boxes],
            "patches": [patch.model_dump() for patch in self.patches] if patches else [],
            "frame_width": self.frame_width,
            "frame_height": self.frame_height,
            "name": self.name,
            "image_url": f"/api/alerts/{self.path}/image?v={self.image}" if self.image else None,
            "frame_url": f"/api/alerts/{self.path}/frame?v={self.frame}" if self.frame else None,
            "feedback": said and said.model_dump(exclude={"at"}) | {"at": stamp(said.at)},
            "url": f"/alerts/{self.path}",
        }


def merge(known: AlertRecord | None, station: str, message: Alert) -> AlertRecord | None:
    """What is known once ``message`` was heard; None: it says nothing new, as one that was delivered again.

    An alert that is closed stays so, and one that is open never goes back in time: messages may come twice, and not in
    order when they do.
    """
    if known is not None and (known.state == "closed" or message.last_frame < known.last_frame):
        return None
    closed = message.event == "close"
    patches = tuple(patch for patch in message.patches if math.isfinite(patch.score))
    told = {
        "state": "closed" if closed else "open",
        "updated_at": message.at,
        "closed_at": message.at if closed else None,
        "last_frame": message.last_frame,
        "score": message.score,
        "peak_score": message.peak_score,
        "threshold": message.threshold,
        "boxes": message.boxes[:MAX_BOXES],
        "peak_boxes": (message.peak_boxes or message.boxes)[:MAX_BOXES],
        "frame_width": message.frame_width,
        "frame_height": message.frame_height,
        "name": message.name[:500],
    }
    if patches:
        told["patches"] = patches
    if known is not None:
        return known.model_copy(update=told)
    return AlertRecord.model_validate(
        {
            "station": station,
            "id": message.id,
            "opened_at": message.opened_at,
            "first_frame": message.first_frame,
            **told,
        }
    )


def stamp(time: datetime | None) -> str | None:
    """RFC 3339, UTC, milliseconds."""
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
