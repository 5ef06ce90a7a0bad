"""From patch scores to alerts. Pure: inspections in, events out; no clock, no input or output."""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import cv2
import numpy as np

from engines.engine import Float32Array
from engines.geometry import Box
from station.frames import Frame, Inspection
from station.settings import AlertSettings, JudgeSettings

NOTICEABLE_RISE = 1.1
"""An update is told when the peak score has grown by this factor since subscribers last heard of it."""


def frame_score(patch_scores: Float32Array, settings: JudgeSettings) -> float:
    """Score of the frame: its highest patch score (paper, V.B), or the mean of the k highest.

    Args:
        patch_scores: float32 (N,), N >= 1.
        settings: which of the two, and k.
    """
    if settings.frame_score == "max":
        return float(patch_scores.max())
    k = min(settings.top_k, patch_scores.size)
    return float(np.partition(patch_scores, -k)[-k:].mean(dtype=np.float64))


def low_level(threshold: float, median_good: float | None, hysteresis: float) -> float:
    """The lower of the two levels: patches above it belong to a defect whose peak is above the threshold.

    A share of the way from the threshold down to what good frames score. A share of the threshold itself
    would not do: where good frames score, say, 0.9 x threshold, a low level of 0.75 x threshold lies below
    all of them and no alert would ever close. Without a known median there is no such scale, hence no
    hysteresis.
    """
    if median_good is None:
        return threshold
    return min(threshold, threshold - hysteresis * (threshold - median_good))


@dataclass(frozen=True, slots=True)
class Region:
    """Patches that hang together.

    Attributes:
        box: smallest box around them, frame pixels.
        score: the highest of their scores.
    """

    box: Box
    score: float


def find_regions(inspection: Inspection, level: float) -> list[Region]:
    """Connected patches that score above ``level``; highest peak first.

    With ``level`` below the threshold and only regions whose peak is above it kept, this is the hysteresis
    thresholding of Canny's edge detector: a weak patch counts where it continues a strong one.

    Patches are connected where their gap is at most one patch (8-neighbours, and across one quiet patch),
    measured in pixels, so overlapping strides and patches aligned to the border need no special care.
    """
    grid = inspection.grid
    hot = np.flatnonzero(inspection.patch_scores > level)
    if hot.size == 0:
        return []
    P = grid.patch
    origins = grid.origins[hot]
    half = (P + 1) // 2
    # Patches grown by half a patch on each side touch exactly where the gap between them is one patch.
    mask = np.zeros(grid.prepared_size, np.uint8)
    for y, x in origins:
        mask[max(y - half, 0) : y + P + half, max(x - half, 0) : x + P + half] = 1
    _, labels = cv2.connectedComponents(mask, connectivity=8)
    label = labels[origins[:, 0], origins[:, 1]]
    regions = []
    for value in np.unique(label):
        members = label == value
        top, left = (int(v) for v in origins[members].min(axis=0))
        bottom, right = (int(v) + P for v in origins[members].max(axis=0))
        regions.append(
            Region(
                box=grid.to_frame_box(Box(left, top, right - left, bottom - top)),
                score=float(inspection.patch_scores[hot[members]].max()),
            )
        )
    return sorted(regions, key=lambda region: -region.score)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A defect as one frame shows it; all that its picture needs.

    Attributes:
        score: highest patch score of the defect in this frame.
        boxes: where, frame pixels.
    """

    frame: Frame
    inspection: Inspection
    boxes: tuple[Box, ...]
    score: float


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """Something to tell about an alert. Each id is opened once, updated any number of times, closed once.

    Attributes:
        id: unique and sortable: UTC time of opening to the millisecond, then a counter; fit for an MQTT topic
            level and a file name.
        opened_at: capture time of the frame that opened it, UTC.
        first_frame: sequence number of the first frame that showed the defect.
        last_frame: sequence number of the last frame that showed it.
        score: the defect's score in its last frame.
        threshold: that it was judged by.
        boxes: where it was last seen, frame pixels.
        frame_size: (height, width) of that frame.
        peak: the sighting with the highest score so far.
        new_peak: whether ``peak`` has changed since the last event of this id (always for "open"): whether a
            new picture is due.
    """

    event: Literal["open", "update", "close"]
    id: str
    opened_at: datetime
    first_frame: int
    last_frame: int
    score: float
    threshold: float
    boxes: tuple[Box, ...]
    frame_size: tuple[int, int]
    peak: Sighting
    new_peak: bool


@dataclass(slots=True, eq=False)
class _Track:
    """One defect, followed from frame to frame: a candidate until ``id`` is set, then an open alert."""

    first_frame: int
    box: Box
    last: Sighting
    peak: Sighting
    hits: deque[bool]
    quiet: int = 0
    id: str = ""
    opened_at: datetime | None = None
    told_peak: Sighting | None = None
    told_box: Box = field(default=Box(0, 0, 0, 0))


class AlertTracker:
    """Turns inspections into the life cycle of alerts: one physical defect, one alert.

    A defect is a region whose peak patch is above the threshold in a frame whose score is (for the frame score
    ``max`` the one implies the other). It belongs to the nearest alert within ``same_defect_distance`` of it;
    what no alert is near to starts a candidate, which opens after ``open_hits`` of ``open_window`` frames. An
    open alert lives on while anything near it stays above the low level, and closes after ``close_after``
    frames in which nothing does.

    Updates are rare on purpose, as each is a message and perhaps a picture: one is told only when the peak
    score has grown by a tenth, or the defect has left the place last told by half of
    ``same_defect_distance`` (and by a patch at least). The closing event carries the final state anyway.
    """

    def __init__(self, settings: AlertSettings, threshold: float, median_good: float | None = None) -> None:
        """Start without alerts.

        Args:
            settings: life cycle of an alert.
            threshold: on scores, from the calibration or the settings.
            median_good: median frame score of good frames, from the calibration; None switches hysteresis off.
        """
        self._settings = settings
        self._median_good = median_good
        self.threshold = threshold
        self._tracks: list[_Track] = []
        self._opened = 0

    @property
    def threshold(self) -> float:
        """What the next frame is judged by. A new one holds for the alerts that are open, too."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self._threshold = threshold
        self._low = low_level(threshold, self._median_good, self._settings.hysteresis)

    @property
    def open_alerts(self) -> tuple[str, ...]:
        """Ids of the alerts that are open, oldest first."""
        return tuple(track.id for track in self._tracks if track.id)

    def update(self, frame: Frame, inspection: Inspection) -> list[AlertEvent]:
        """Take the next frame, in order of capture."""
        seen = self._associate(frame, inspection)
        events: list[AlertEvent] = []
        going_on: list[_Track] = []
        for track in self._tracks:
            event, alive = self._advance(track, seen.get(track, []), frame, inspection)
            events += event
            if alive:
                going_on.append(track)
        self._tracks = going_on
        return events

    def flush(self) -> list[AlertEvent]:
        """Close all that is open and forget the candidates, as when the station stops."""
        events = [self._tell("close", track) for track in self._tracks if track.id]
        self._tracks = []
        return events

    def _associate(self, frame: Frame, inspection: Inspection) -> dict[_Track, list[Region]]:
        """Give every region to the nearest track within reach; a defect that has none starts one."""
        seen: dict[_Track, list[Region]] = {}
        if inspection.score <= self._low:
            return seen
        reach = round(self._settings.same_defect_distance * max(inspection.grid.frame_size))
        for region in find_regions(inspection, self._low):
            near = [track for track in self._tracks if region.box.grown(reach).intersects(track.box)]
            if near:
                box = region.box
                nearest = min(near, key=lambda track: _distance(box, track.box))
            elif self._is_defect(region, inspection):
                sighting = Sighting(frame, inspection, (region.box,), region.score)
                hits: deque[bool] = deque(maxlen=self._settings.open_window)
                nearest = _Track(frame.seq, region.box, last=sighting, peak=sighting, hits=hits)
                self._tracks.append(nearest)
            else:
                continue
            seen.setdefault(nearest, []).append(region)
        return seen

    def _is_defect(self, region: Region, inspection: Inspection) -> bool:
        return region.score > self._threshold and inspection.score > self._threshold

    def _advance(
        self, track: _Track, regions: list[Region], frame: Frame, inspection: Inspection
    ) -> tuple[list[AlertEvent], bool]:
        """One frame in the life of a track: what there is to tell, and whether it goes on."""
        defects = [region for region in regions if self._is_defect(region, inspection)]
        track.hits.append(bool(defects))
        track.quiet = 0 if regions else track.quiet + 1
        if regions:
            # Weak regions keep the alert alive, but are not part of the picture while there are strong ones.
            shown = defects or regions
            boxes = tuple(region.box for region in shown)
            track.last = Sighting(frame, inspection, boxes, max(region.score for region in shown))
            track.box = _union(boxes)
            if track.last.score > track.peak.score:
                track.peak = track.last
        if not track.id:
            if sum(track.hits) < self._settings.open_hits:
                return [], any(track.hits)
            self._opened += 1
            track.opened_at = frame.captured_at
            track.id = (
                f"{frame.captured_at:%Y%m%d-%H%M%S}{frame.captured_at.microsecond // 1000:03d}-{self._opened:04d}"
            )
            return [self._tell("open", track)], True
        if track.quiet >= self._settings.close_after:
            return [self._tell("close", track)], False
        if self._worth_telling(track):
            return [self._tell("update", track)], True
        return [], True

    def _worth_telling(self, track: _Track) -> bool:
        told = track.told_peak
        if told is None or track.peak.score >= NOTICEABLE_RISE * told.score:
            return True
        grid = track.last.inspection.grid
        patch = max(grid.box(0)[2:])
        slack = max(patch, round(self._settings.same_defect_distance * max(grid.frame_size) / 2))
        return track.told_box.grown(slack).union(track.box) != track.told_box.grown(slack)

    def _tell(self, event: Literal["open", "update", "close"], track: _Track) -> AlertEvent:
        new_peak = track.peak is not track.told_peak
        track.told_peak = track.peak
        track.told_box = track.box
        return AlertEvent(
            event=event,
            id=track.id,
            opened_at=track.opened_at or track.last.frame.captured_at,
            first_frame=track.first_frame,
            last_frame=track.last.frame.seq,
            score=track.last.score,
            threshold=self._threshold,
            boxes=track.last.boxes,
            frame_size=track.last.inspection.grid.frame_size,
            peak=track.peak,
            new_peak=new_peak,
        )


def _union(boxes: tuple[Box, ...]) -> Box:
    union = boxes[0]
    for box in boxes[1:]:
        union = union.union(box)
    return union


def _distance(a: Box, b: Box) -> tuple[int, int]:
    """How far two boxes are apart: the gap between them, then between their centres (doubled, squared)."""
    gap = max(0, a.x - b.right, b.x - a.right, a.y - b.bottom, b.y - a.bottom)
    dx, dy = 2 * a.x + a.w - 2 * b.x - b.w, 2 * a.y + a.h - 2 * b.y - b.h
    return gap, dx * dx + dy * dy
