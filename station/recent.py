"""Recent frames on disk, as the camera gave them: what ``station calibrate --from-recent`` calibrates on.

A ring: the oldest frames leave when the bound is reached. A file is one frame, a PNG, and its name says the rest, so
that no crash can part a frame from its score. Frames are encoded and written by a thread of their own; while it is
busy further frames are passed over, and inspection never waits for a disk.
"""

import errno
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import structlog

from engines.files import write_whole
from station.frames import Frame
from station.settings import HealthSettings

log = structlog.get_logger(__name__)

FOLDER = "recent"
"""Below the state folder."""
_TIME = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(
    r"(?P<number>\d{10})_(?P<at>\d{8}T\d{6}\.\d{6}Z)_"
    r"(?P<score>-?\d{1,6}(?:\.\d{1,10})?(?:e[+-]\d{1,3})?)(?P<mark>!?)\.png"
)
_PART = re.compile(r"\.\d{10}_[^/]*\.png\.[0-9a-f]{8}\.part")


@dataclass(frozen=True, slots=True)
class RecentFrame:
    """A frame in the ring.

    Attributes:
        path: its PNG.
        number: counts the frames that were ever kept; orders them whatever the clock did.
        captured_at: UTC.
        score: what it scored then, to six digits.
        anomalous: whether that was above the threshold of then.
        size: bytes.
    """

    path: Path
    number: int
    captured_at: datetime
    score: float
    anomalous: bool
    size: int


class _Offer(NamedTuple):
    frame: Frame
    score: float
    anomalous: bool


def read_ring(folder: Path) -> list[RecentFrame]:
    """What is in the ring, oldest first; files that are none of the ring's are left alone.

    Raises:
        OSError: the folder is there but cannot be read.
    """
    found = []
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is None or not entry.is_file(follow_symlinks=False):
            continue
        try:
            at = datetime.strptime(match["at"], _TIME).replace(tzinfo=timezone.utc)
            size = entry.stat(follow_symlinks=False).st_size
        except (ValueError, FileNotFoundError):  # no such day; dropped from the ring meanwhile
            continue
        found.append(
            RecentFrame(Path(entry.path), int(match["number"]), at, float(match["score"]), bool(match["mark"]), size)
        )
    return sorted(found, key=lambda frame: frame.number)


class RecentFrames:
    """Keeps the ring. ``offer`` is for the inspect thread, the rest for any other."""

    def __init__(self, folder: Path, settings: HealthSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is read or written yet.

        Args:
            folder: the ring's own; made when the first frame is written.
            settings: ``recent_every``, ``recent_mib``; 0 MiB keeps nothing.
            clock: monotonic seconds.
        """
        self._folder = folder
        self._every = settings.recent_every
        self._bound = settings.recent_mib * 2**20
        self._clock = clock
        self._rng = np.random.default_rng()
        self._next = -np.inf
        self._offers: queue.Queue[_Offer | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._write_all, name="recent", daemon=True)
        self._ring: deque[RecentFrame] | None = None  # None: not read yet
        self._bytes = 0
        self._last_number = 0
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why frames are not kept, ``code: words``; None while all is well."""
        return self._trouble

    def start(self) -> None:
        """Start the thread that writes."""
        if self._bound:
            self._thread.start()

    def offer(self, frame: Frame, score: float, *, anomalous: bool) -> None:
        """Keep this frame if it is time for one and the last is written; never waits.

        Only frames of a camera without a fault belong here.
        """
        now = self._clock()
        if not self._bound or now < self._next:
            return
        try:
            self._offers.put_nowait(_Offer(frame, score, anomalous))
        except queue.Full:
            return
        # Irregular times, so that a line that repeats itself is not always met at the same place.
        self._next = now + self._every * self._rng.uniform(0.5, 1.5)

    def stop(self, timeout: float) -> None:
        """Write what was offered and end the thread, waiting for it at most ``timeout`` seconds."""
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + timeout
        try:
            self._offers.put(None, timeout=timeout)
        except queue.Full:  # the disk hangs; the thread is a daemon
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    # --- the ring's thread ---

    def _write_all(self) -> None:
        while (offer := self._offers.get()) is not None:
            self.keep(offer.frame, offer.score, anomalous=offer.anomalous)

    def keep(self, frame: Frame, score: float, *, anomalous: bool) -> None:
        """Write a frame now, in this thread; for the ring's own, and where there is none."""
        try:
            self._write(frame, score, anomalous=anomalous)
        except (OSError, cv2.error, MemoryError) as error:
            self._complain(error)
            return
        if self._trouble is not None:
            log.info("recent frames are kept again", folder=str(self._folder))
            self._trouble = None

    def _write(self, frame: Frame, score: float, *, anomalous: bool) -> None:
        ring = self._opened()
        ok, encoded = cv2.imencode(".png", frame.image)
        if not ok:
            raise OSError(errno.EINVAL, "OpenCV could not encode the frame as PNG")
        data = encoded.tobytes()
        if len(data) > self._bound:
            raise OSError(errno.EFBIG, f"one frame takes {len(data) / 2**20:.1f} MiB; raise health.recent_mib")
        while ring and self._bytes + len(data) > self._bound:
            ring[0].path.unlink(missing_ok=True)
            self._bytes -= ring.popleft().size
        self._last_number += 1
        at = frame.captured_at.astimezone(timezone.utc)
        mark = "!" if anomalous else ""
        path = self._folder / f"{self._last_number:010}_{at.strftime(_TIME)}_{score:.6g}{mark}.png"
        write_whole(path, data, mode=0o600)
        ring.append(RecentFrame(path, self._last_number, at, score, anomalous, len(data)))
        self._bytes += len(data)

    def _opened(self) -> deque[RecentFrame]:
        """The ring that an earlier run left, without the half file that a kill may have left."""
        if self._ring is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                if _PART.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            ring = deque(read_ring(self._folder))
            self._bytes = sum(frame.size for frame in ring)
            self._last_number = ring[-1].number if ring else 0
            self._ring = ring
        return self._ring

    def _complain(self, error: Exception) -> None:
        self._ring = None  # whatever happened to the folder, look again the next time
        words = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        trouble = f"recent-frames: {words.lower()} ({self._folder}): recent frames are not kept"
        if trouble != self._trouble:
            log.warning("recent frames are not kept", folder=str(self._folder), problem=words)
        self._trouble = trouble
