"""How the device and the process do: temperatures, memory, and how long the stages take."""

import os
import resource
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from station.messages import StageTimes

THERMAL = Path("/sys/class/thermal")
STAGE_FRAMES = 10_000
"""Frames that a stage window remembers; at 100 frames per second more than a minute."""
_PLAUSIBLE = (-60.0, 200.0)  # °C; zones that are switched off report things like -256


def temperatures(root: Path = THERMAL) -> dict[str, float]:
    """Degrees Celsius by thermal zone; zones that cannot be read are left out.

    Zones of one type are told apart by a number: ``acpitz``, ``acpitz-2``.
    """
    found: dict[str, float] = {}
    for zone in sorted(root.glob("thermal_zone*"), key=lambda zone: (len(zone.name), zone.name)):
        try:
            kind = (zone / "type").read_text(encoding="utf-8", errors="replace").strip()[:64] or zone.name
            celsius = int((zone / "temp").read_text(encoding="ascii")) / 1000
        except (OSError, ValueError):
            continue
        if _PLAUSIBLE[0] <= celsius <= _PLAUSIBLE[1]:
            name, number = kind, 1
            while name in found:
                number += 1
                name = f"{kind}-{number}"
            found[name] = celsius
    return found


def resident_bytes() -> int:
    """Memory of this process that is in RAM; where there is no /proc, the most it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


class StageWindow:
    """Milliseconds by stage since the last summary. ``add`` and ``summary`` may be in different threads."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._ms = self._empty()

    def add(self, ms: Mapping[str, float]) -> None:
        """Take one frame's milliseconds by stage."""
        with self._lock:
            for stage, value in ms.items():
                self._ms[stage].append(value)

    def summary(self) -> dict[str, StageTimes]:
        """Median and 99th percentile by stage; the window begins anew."""
        with self._lock:
            taken, self._ms = self._ms, self._empty()
        return {
            stage: StageTimes(p50=round(float(p50), 3), p99=round(float(p99), 3))
            for stage, values in taken.items()
            for p50, p99 in [np.percentile(values, (50, 99))]
        }

    @staticmethod
    def _empty() -> "defaultdict[str, deque[float]]":
        return defaultdict(lambda: deque(maxlen=STAGE_FRAMES))
