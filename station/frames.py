"""The plain data that travel through the station: the frame, and what inspecting it gave."""

from dataclasses import dataclass, field
from datetime import datetime

from engines.engine import Float32Array, UInt8Array
from engines.tiling import PatchGrid


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture from the camera.

    Attributes:
        seq: sequence number since the daemon started, from 1; gaps are frames that were dropped.
        image: uint8 (H, W, 3), BGR as OpenCV gives it.
        captured_at: UTC time of capture.
        monotonic: ``time.monotonic()`` at capture, seconds; for latencies.
        name: where the frame came from, if it has a name (a file of ``folder:``), else "".
        damage: what of the picture did not arrive, in words; None: it is whole.
    """

    seq: int
    image: UInt8Array
    captured_at: datetime
    monotonic: float
    name: str = ""
    damage: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What inspecting one frame gave.

    Attributes:
        score: the frame's score; above the threshold the frame is anomalous.
        patch_scores: float32 (N,); see engines.judging.
        heat: float32 (h, w), prepared pixels: where the frame departs from good material; may be negative.
        grid: where the N patches lie.
        ms: milliseconds by stage: prepare, infer, judge.
    """

    score: float
    patch_scores: Float32Array = field(repr=False)
    heat: Float32Array = field(repr=False)
    grid: PatchGrid = field(repr=False)
    ms: dict[str, float]
