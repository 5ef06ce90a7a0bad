"""What many stations would say, as messages: a line with something of everything. No station runs for it."""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import numpy as np

from station.messages import (
    Alert,
    CameraHealth,
    DriftHealth,
    Health,
    Info,
    Message,
    Rectangle,
    Score,
    ScoredPatch,
    StageTimes,
    Status,
)

START = datetime(2026, 1, 15, 13, 0, tzinfo=timezone.utc)
PREFIX = "station/v1"
THRESHOLD = 0.25


def names(count: int) -> list[str]:
    """``site/line/name`` of so many stations."""
    sites = ("mill", "tannery", "press")
    places = ("left", "right", "top", "bottom")
    return [f"{sites[at // 8 % 3]}/{at // 4 + 1}/{places[at % 4]}" for at in range(count)]


def opening(station: str, number: int) -> list[Message]:
    """What a station says when it starts: a few of them are not well."""
    state, reasons = {
        1: ("degraded", ("camera-blurred: sharpness 0.31 of 0.9 to 1.2; look at the lens",)),
        6: ("offline", ()),
        9: ("stopped", ()),
        14: ("degraded", ("paused: by anna",)),
    }.get(number, ("online", ()))
    info = Info(
        session="s",
        version="0.4.0",
        bundle_name="leather",
        bundle_sha256="0" * 64,
        engine_backend="onnxruntime",
        engine_device="CPU",
        engine_precision="fp32",
        threshold=THRESHOLD,
        calibrated_at=START,
        camera_url=f"rtsp://camera-{number}.plant/stream",
        frame_width=1280,
        frame_height=1024,
    )
    return [Status(state=state, reasons=reasons, session="s", at=START), info, _health(state, reasons, number)]


def _health(state: str, reasons: tuple[str, ...], number: int) -> Health:
    if number == 3:
        reasons = (*reasons, "scores-drift: higher than at calibration (effect 0.71)")
    return Health(
        session="s",
        state="degraded" if state == "degraded" else "online",
        reasons=reasons,
        uptime_s=93_784,
        inspected=930_000,
        camera=CameraHealth(
            connected=True,
            fault=None,
            frames=930_012,
            reconnects=1,
            fps=10,
            brightness=121.3,
            sharpness=0.98,
            noise=1.2,
        ),
        drift=DriftHealth(
            state="drift" if number == 3 else "stable",
            direction="higher" if number == 3 else None,
            effect=0.71 if number == 3 else 0.52,
            p_value=0.01,
            frames=500,
        ),
        stages_ms={name: StageTimes(p50=ms, p99=2 * ms) for name, ms in {"infer": 21, "judge": 2, "total": 26}.items()},
        queued={"frames": 0, "scores": 0, "outbox": 0, "outbox_bytes": 0},
        dropped={"frames": 12, "scores": 0, "alerts": 0, "images": 0},
        temperatures_c={"cpu": 61.5},
        resident_bytes=312 * 2**20,
    )


def scores(number: int, seconds: int, per_second: int = 1) -> Iterator[tuple[float, Score]]:
    """(seconds since the start, score): noise, and every now and then a defect."""
    random = np.random.default_rng(number)
    for frame in range(seconds * per_second):
        time = frame / per_second
        score = 0.1 + 0.02 * math.sin(time / 7 + number) + float(random.gamma(2, 0.012))
        if number in {2, 11} and (seconds - time) % 40 < 3:
            score = THRESHOLD * (1.2 + 0.5 * float(random.random()))
        if number == 3:
            score += 0.05
        yield (
            time,
            Score(
                frame=frame,
                captured_at=START + timedelta(seconds=time),
                score=score,
                threshold=THRESHOLD,
                anomalous=score > THRESHOLD,
                latency_ms={"total": 22 + 3 * float(random.random())},
            ),
        )


def alert(event: str, number: int, *, station_path: str = "mill/1/top", peak: float = 0.41) -> Alert:
    """An alert of a station."""
    at = START + timedelta(seconds=number)
    box = Rectangle(x=320 + 16 * (number % 40), y=256, w=64, h=96)
    return Alert(
        event=event,  # type: ignore[arg-type]  # the tests' own
        id=f"20260115-1300{number:02}000-0001",
        dedupe_key=f"{number}/{event}",
        opened_at=at,
        first_frame=10 * number,
        last_frame=10 * number + (20 if event == "close" else 0),
        score=peak,
        peak_score=peak,
        threshold=THRESHOLD,
        boxes=(box,),
        frame_width=1280,
        frame_height=1024,
        image_topic=f"{PREFIX}/{station_path}/alert/{number}/image",
        patches=(ScoredPatch(x=box.x, y=box.y, w=64, h=64, score=peak),),
    )
