"""The frame: the one thing that travels through the whole station."""

from dataclasses import dataclass
from datetime import datetime

from engines.engine import UInt8Array


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture from the camera.

    Attributes:
        seq: sequence number since the daemon started, from 1; gaps are frames that were dropped.
        image: uint8 (H, W, 3), BGR as OpenCV gives it.
        captured_at: UTC time of capture.
        monotonic: ``time.monotonic()`` at capture, seconds; for latencies.
        name: where the frame came from, if it has a name (a file of ``folder:``), else "".
    """

    seq: int
    image: UInt8Array
    captured_at: datetime
    monotonic: float
    name: str = ""
