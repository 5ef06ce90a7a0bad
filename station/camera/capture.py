"""The capture thread: reads the camera, reconnects, and hands frames over."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Literal, final

import structlog

from station.camera.source import (
    CameraError,
    EndOfStream,
    Picture,
    Source,
    StalledError,
    UnpluggedError,
    redact_url,
)
from station.camera.sources import make_source
from station.frames import Frame
from station.settings import CameraSettings

_log = structlog.get_logger(__name__)
_random = secrets.SystemRandom()  # every station on the line must draw another pause

# Frames that may wait for the consumer. 'latest': one, so that what is inspected is never older than one frame.
_ROOM: dict[str, int] = {"latest": 1, "every": 4}


@dataclass(frozen=True, slots=True)
class CaptureStats:
    """How the camera does.

    Attributes:
        frames: frames read so far; equals the ``seq`` of the newest.
        dropped: frames of these that were replaced by a newer one before anybody took them.
        reconnects: how often the camera came back after it was lost.
        connected: the source is open.
        waiting: frames read and not taken yet.
        fault: why there are no frames, ``code: words`` without credentials; None while all is well.
    """

    frames: int
    dropped: int
    reconnects: int
    connected: bool
    waiting: int
    fault: str | None


@final
class Capture:
    """Owns the thread that reads one camera.

    ``with Capture(settings) as capture: frame = capture.get(1.0)``

    A read may hang inside OpenCV; ``get``, ``stats`` and ``stop`` never wait for it.
    """

    def __init__(
        self,
        settings: CameraSettings,
        *,
        source: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the source; nothing is opened yet.

        Args:
            settings: ``url``, policy, pace, time-outs.
            source: read this one instead of what ``settings.url`` names.
            clock: monotonic seconds.

        Raises:
            CameraError: see ``make_source``.
        """
        self._settings = settings
        self._source = make_source(settings) if source is None else source
        self._clock = clock
        self._policy: Literal["latest", "every"] = (
            settings.policy if settings.policy != "auto" else "latest" if self._source.live else "every"
        )
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._stopping = threading.Event()
        # Guards all below; notified when a frame comes or goes, and at the end.
        self._changed = threading.Condition()
        self._waiting: deque[Frame] = deque()
        self._outcome: Exception | None = None  # why there will be no more frames
        self._frames = self._dropped = self._reconnects = 0
        self._connected = False
        self._error: CameraError | None = None
        self._starved_since: float | None = None  # since when the camera owes a frame

    @property
    def policy(self) -> Literal["latest", "every"]:
        """What becomes of frames that nobody has taken when another one comes."""
        return self._policy

    @property
    def stats(self) -> CaptureStats:
        """A snapshot."""
        with self._changed:
            return CaptureStats(
                self._frames, self._dropped, self._reconnects, self._connected, len(self._waiting), self._fault()
            )

    def start(self) -> None:
        """Start reading.

        Raises:
            CameraError: a file, folder or demo cannot be opened. A live camera may still come: see ``stats.fault``.
        """
        if not self._source.live:
            self._open()
        self._thread.start()

    def get(self, timeout: float) -> Frame | None:
        """The next frame; None if none came within ``timeout`` seconds.

        Raises:
            EndOfStream: the source is over, or ``stop`` was called, and all frames have been taken.
            CameraError: a file, folder or demo went wrong.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._outcome, timeout)
            if self._waiting:
                frame = self._waiting.popleft()
                self._changed.notify_all()
                return frame
            if self._outcome:
                raise self._outcome
            return None

    def stop(self, timeout: float = 1.0) -> None:
        """Stop reading; waits at most ``timeout`` seconds for a read under way. Stopping twice is allowed."""
        self._stopping.set()
        with self._changed:
            self._outcome = self._outcome or EndOfStream("the capture was stopped")
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def __enter__(self) -> "Capture":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _fault(self) -> str | None:
        starved = 0.0 if self._starved_since is None else self._clock() - self._starved_since
        reasons = [f"no frame for {starved:.0f} s"] if starved >= self._settings.read_timeout else []
        if self._error is not None:
            reasons.append(str(self._error))
        code = StalledError.code if self._error is None else self._error.code
        return ": ".join([code, *reasons]) if reasons else None

    def _run(self) -> None:
        try:
            if self._source.live:
                self._read_live()
            else:
                self._read_to_end()
            outcome: Exception = EndOfStream("the source is over")
        except Exception as error:  # noqa: BLE001 - whatever it is, get() raises it in the consumer's thread
            outcome = error
        self._close()
        with self._changed:
            self._outcome = self._outcome or outcome
            self._starved_since = None
            self._error = outcome if isinstance(outcome, CameraError) else None
            self._changed.notify_all()

    def _read_to_end(self) -> None:
        pace = 1 / self._settings.fps if self._settings.fps else 0.0
        due = self._clock()
        while True:
            count = 0
            while (picture := self._read()) is not None:
                count += 1
                self._stopping.wait(due - self._clock())
                if not self._hand_over(picture):
                    return
                due = max(due + pace, self._clock())
            if count == 0:
                raise CameraError(f"{redact_url(self._settings.url)} holds no frame")
            if not self._settings.loop:
                return
            self._close()
            self._open()

    def _read_live(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            frames = self._frames
            reason = self._read_until_lost()
            if self._stopping.is_set():
                return
            failures = failures + 1 if self._frames == frames else 1
            pause = self._pause(failures)
            self._close()
            self._report(reason, pause)
            self._stopping.wait(pause)

    def _read_until_lost(self) -> CameraError:
        """Open the camera and read it; returns why there is nothing more to read."""
        try:
            self._open()
            while (picture := self._read()) is not None and self._hand_over(picture):
                pass
        except CameraError as error:
            return error
        return UnpluggedError(f"{redact_url(self._settings.url)} ended the stream")

    def _pause(self, failures: int) -> float:
        """Seconds before the next attempt: exponential back-off with full jitter above the shortest pause."""
        shortest, longest = self._settings.reconnect_min, self._settings.reconnect_max
        return _random.uniform(shortest, min(longest, shortest * 2.0 ** min(failures, 32)))

    def _report(self, error: CameraError, pause: float) -> None:
        # The same reason again, all night long, would fill the log.
        log = _log.debug if str(error) == str(self._error) else _log.warning
        log("no frames from the camera", code=error.code, reason=str(error), retry_in_s=round(pause, 1))
        with self._changed:
            self._error = error

    def _open(self) -> None:
        self._starve()
        self._source.open()
        with self._changed:
            self._connected = True
        _log.info("camera opened", url=redact_url(self._settings.url), policy=self._policy)

    def _close(self) -> None:
        with self._changed:
            self._connected = False
        self._source.close()

    def _starve(self) -> None:
        with self._changed:
            if self._starved_since is None:
                self._starved_since = self._clock()

    def _read(self) -> Picture | None:
        self._starve()
        return self._source.read()

    def _hand_over(self, picture: Picture) -> bool:
        """Queue the picture as a frame; False when the capture is being stopped."""
        monotonic, now = self._clock(), datetime.now(timezone.utc)
        with self._changed:
            if self._error is not None:
                self._reconnects += self._frames > 0
                self._error = None
            self._starved_since = None
            self._frames += 1
            frame = Frame(self._frames, picture.image, now, monotonic, picture.name, picture.damage)
            room = _ROOM[self._policy]
            if self._policy == "every":
                self._changed.wait_for(lambda: len(self._waiting) < room or self._stopping.is_set())
            elif len(self._waiting) == room:
                self._waiting.popleft()
                self._dropped += 1
            if self._stopping.is_set():
                return False
            self._waiting.append(frame)
            self._changed.notify_all()
            return True
