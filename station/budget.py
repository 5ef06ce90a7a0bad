"""How many false alarms people can bear, as they say it: "1/shift", "2/day", or a share of the frames."""

import re
from dataclasses import dataclass
from math import comb

from station.settings import AlertSettings

SHIFT_HOURS = 8
SHIFT = SHIFT_HOURS * 3600.0
_PERIODS = {"hour": 3600.0, "shift": SHIFT, "day": 86_400.0, "week": 604_800.0}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
_BUDGET = re.compile(rf"({_NUMBER})(?:\s*/\s*({_NUMBER}|[a-z]+))?")
FORMS = '"1e-4" or "1/10000" of the frames, or "1/hour", "1/shift", "2/day", "1/week"'


@dataclass(frozen=True, slots=True)
class Budget:
    """So many false alarms a period, or a share of the frames.

    Attributes:
        text: as it was given.
        count: of alarms in ``seconds``, or a probability per frame.
        seconds: the period; None: ``count`` is a probability already.
    """

    text: str
    count: float
    seconds: float | None

    def rate(self, fps: float | None) -> float:
        """Probability that one good frame scores above the threshold.

        Args:
            fps: frames a second; needed where the budget is one for a period.

        Raises:
            ValueError: there is no frame rate, or the budget is no probability at it.
        """
        if self.seconds is None:
            return self.count
        if fps is None:
            raise ValueError(f"{self.text!r} needs the frame rate: add --fps FRAMES_PER_SECOND")
        rate = self.count / (fps * self.seconds)
        if rate >= 1:
            raise ValueError(f"{self.text!r} at {fps:g} frames a second allows every frame to alarm")
        return rate


def parse_budget(text: str) -> Budget:
    """Read what ``--false-alarms`` takes.

    Raises:
        ValueError: it is none; says which forms there are.
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not {FORMS}")
    count, per = float(match[1]), match[2]
    if per is None or per[0].isdigit():
        divisor = float(per) if per else 1.0
        rate = count / divisor if divisor else 0.0
        if not 0 < rate < 1:
            raise ValueError(f"{text!r} must lie between 0 and 1, such as 1e-3")
        return Budget(text, rate, None)
    if per not in _PERIODS or count <= 0:
        raise ValueError(f"{text!r} is not {FORMS}")
    return Budget(text, count, _PERIODS[per])


@dataclass(frozen=True, slots=True)
class Pace:
    """How many frames a station judges, and what it makes of those above the threshold.

    Attributes:
        fps: frames a second.
        origin: where that is from, in words.
        alerts: life cycle of an alert.
    """

    fps: float
    origin: str
    alerts: AlertSettings

    @property
    def words(self) -> str:
        """The rate as people say it."""
        return f"{self.fps:.3g} frame{'' if self.fps == 1 else 's'} a second"

    @property
    def frames(self) -> float:
        """In a shift."""
        return SHIFT * self.fps

    def alerts_in_words(self, rate: float) -> str:
        """What good frames above the threshold mean in alerts.

        Args:
            rate: probability that a good frame scores above the threshold.
        """
        hits, window = self.alerts.open_hits, self.alerts.open_window
        above = rate * self.frames
        if hits == 1:
            return (
                "That counts frames. Good frames that follow one another are much alike and go above it in runs, and a "
                "run at one place is one alert: alerts are at most that many, mostly fewer. alerts.open_hits of two or "
                "more makes them rarer."
            )
        # Independent frames: this one above, and hits - 1 of those before it in the window.
        alone = comb(window - 1, hits - 1) * rate**hits * self.frames
        return (
            f"That counts frames; an alert needs {hits} of {window} in a row (alerts.open_hits, alerts.open_window). "
            f"So alerts are at most {amount(above / hits)} a shift, which is what frames give that show the same spot "
            f"again and again, and about {amount(alone)} where every frame shows something new. Yours lie in between."
        )


def amount(number: float) -> str:
    """A number of things that need not be whole, as precisely as anybody can mean it."""
    if number < 0.01:
        return "0" if number == 0 else "less than 0.01"
    return f"{number:.2g}" if number < 9.95 else f"{float(f'{number:.2g}'):,.0f}"
