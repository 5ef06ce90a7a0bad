"""What the outside is told of how the station does: its state to the broker, signs of life to systemd."""

import logging
import threading
from collections.abc import Callable
from typing import Literal

import structlog

from station.messages import Status
from station.systemd import Notifier

log = structlog.get_logger(__name__)

REASON_REFRESH = 30.0  # seconds before the same state with new words ("no frame for 35 s") is published again
STATUS_LINE_EVERY = 2.0  # seconds; systemd's STATUS=
_EXTEND_MICROSECONDS = 30_000_000

State = Literal["online", "degraded"]


class Supervision:
    """Publishes the state when it changes, and feeds systemd's watchdog on proof of life.

    Attributes:
        state: what was last published; None: nothing yet.
        reasons: for it, in words.
    """

    def __init__(self, notifier: Notifier, session: str, publish: Callable[[Status], object]) -> None:
        """Nothing is published yet.

        Args:
            notifier: the line to systemd.
            session: id of this run.
            publish: hands a status to the publisher.
        """
        self._notifier = notifier
        self._session = session
        self._publish = publish
        self._lock = threading.Lock()
        self._ready = False
        self._next_reason = self._next_ping = self._next_line = 0.0
        self._steps_at_ping = 0
        self.state: State | None = None
        self.reasons: tuple[str, ...] = ()

    def report(self, state: State, reasons: tuple[str, ...], now: float) -> bool:
        """Publish the state if it is news; from any thread.

        Args:
            state: how the station does.
            reasons: why it is degraded, ``code: words`` each.
            now: ``time.monotonic()``.

        Returns:
            Whether the state is another one than before.
        """
        with self._lock:
            changed = state != self.state
            other_codes = _codes(reasons) != _codes(self.reasons)
            if not changed and not other_codes and (reasons == self.reasons or now < self._next_reason):
                return False
            self.state, self.reasons, self._next_reason = state, reasons, now + REASON_REFRESH
            self._publish(Status(state=state, reasons=reasons, session=self._session))
            if changed or other_codes:
                self._next_line = 0.0  # systemd's line tells of it at once
                level = logging.WARNING if state == "degraded" else logging.INFO
                log.log(level, "status", state=state, reasons=reasons)
            return changed

    def feed(self, steps: int, now: float, *, starved: bool) -> None:
        """Tell systemd that the station lives, if there is proof of it.

        Proof is a frame taken by the inspect thread, a step of the engine's build, or a camera that gives none when
        that was published. A timer alone would prove that the main thread runs and nothing else, and other reasons
        to be degraded, such as a full disk, must not cover up an engine that hangs.

        Args:
            steps: frames taken and steps built so far.
            now: ``time.monotonic()``.
            starved: no frame comes from the camera.
        """
        if self.state == "online" and not self._ready:
            self._ready = True
            self._notifier.notify(READY=1)
        if now < self._next_ping or (steps == self._steps_at_ping and not (starved and self.state == "degraded")):
            return
        self._steps_at_ping = steps
        if not self._ready:
            self._notifier.notify(EXTEND_TIMEOUT_USEC=_EXTEND_MICROSECONDS)
        elif self._notifier.watchdog_seconds is not None:
            self._notifier.notify(WATCHDOG=1)
        self._next_ping = now + (self._notifier.watchdog_seconds or 20.0) / 4

    def describe(self, words: Callable[[], str], now: float) -> None:
        """Send ``systemctl status`` its line, now and then."""
        if now >= self._next_line:
            self._notifier.notify(STATUS=words())
            self._next_line = now + STATUS_LINE_EVERY


def _codes(reasons: tuple[str, ...]) -> list[str]:
    return [reason.partition(":")[0] for reason in reasons]
