"""What the daemon's parts know, put into messages."""

import time

from engines.bundle import Bundle
from engines.engine import EngineInfo
from engines.geometry import Box
from station import __version__
from station.camera import redact_url
from station.frames import Frame, Inspection
from station.judge import AlertEvent
from station.messages import (
    MAX_PATCHES,
    Alert,
    Info,
    Rectangle,
    Score,
    ScoredPatch,
    alert_frame_topic,
    alert_image_topic,
)
from station.settings import Settings
from station.verdict import Verdict


def score_message(frame: Frame, inspection: Inspection, threshold: float) -> Score:
    """The score of one frame.

    Args:
        frame: the frame.
        inspection: what inspecting it gave.
        threshold: that it is judged by.
    """
    total = 1e3 * (time.monotonic() - frame.monotonic)
    # What is left of the time since capture, most of it hand-overs between threads; so that the stages add up.
    wait = max(0.0, total - sum(inspection.ms.values()))
    milliseconds = {"wait": wait, **inspection.ms, "total": total}
    return Score(
        frame=frame.seq,
        captured_at=frame.captured_at,
        score=inspection.score,
        threshold=threshold,
        anomalous=inspection.score > threshold,
        latency_ms={stage: round(ms, 3) for stage, ms in milliseconds.items()},
        name=frame.name,
    )


def alert_message(event: AlertEvent, topic_prefix: str, *, with_frame: bool) -> Alert:
    """One step in the life of an alert; ``with_frame``: the frame that shows it best is published, too."""
    height, width = event.frame_size
    return Alert(
        event=event.event,
        id=event.id,
        dedupe_key=f"{event.id}/{event.event}/{event.last_frame}",
        opened_at=event.opened_at,
        first_frame=event.first_frame,
        last_frame=event.last_frame,
        score=event.score,
        peak_score=event.peak.score,
        threshold=event.threshold,
        boxes=_rectangles(event.boxes),
        peak_boxes=_rectangles(event.peak.boxes),
        frame_width=width,
        frame_height=height,
        name=event.peak.frame.name,
        image_topic=f"{topic_prefix}/{alert_image_topic(event.id)}",
        patches=_highest(event.peak.inspection) if event.new_peak else (),
        frame_topic=f"{topic_prefix}/{alert_frame_topic(event.id)}" if with_frame else None,
    )


def _rectangles(boxes: tuple[Box, ...]) -> tuple[Rectangle, ...]:
    return tuple(Rectangle(x=box.x, y=box.y, w=box.w, h=box.h) for box in boxes)


def _highest(inspection: Inspection) -> tuple[ScoredPatch, ...]:
    order = (-inspection.patch_scores).argsort(kind="stable")[:MAX_PATCHES]
    boxes = [(inspection.grid.box(int(i)), float(inspection.patch_scores[i])) for i in order]
    return tuple(ScoredPatch(x=box.x, y=box.y, w=box.w, h=box.h, score=score) for box, score in boxes)


def info_message(
    settings: Settings,
    bundle: Bundle,
    engine: EngineInfo,
    verdict: Verdict,
    session: str,
    frame_size: tuple[int, int] | None,
) -> Info:
    """What runs here.

    Args:
        settings: of the station.
        bundle: that is open.
        engine: that runs it.
        verdict: that frames are judged by now.
        session: id of this run.
        frame_size: (height, width), pixels; None before the first frame.
    """
    return Info(
        session=session,
        version=__version__,
        bundle_name=bundle.manifest.name,
        bundle_sha256=bundle.digest,
        engine_backend=f"{engine.backend} {engine.backend_version}",
        engine_device=engine.device,
        engine_precision=engine.precision,
        threshold=verdict.threshold,
        calibrated_at=verdict.calibrated_at,
        camera_url=redact_url(settings.camera.url),
        frame_width=frame_size[1] if frame_size else None,
        frame_height=frame_size[0] if frame_size else None,
    )
