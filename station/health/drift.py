"""Drift: do frames of late score as those of the calibration did?

Two-sample rank tests over a window of late scores, one for where they lie (Mann-Whitney) and one for how far they
spread (the same test on ranks folded at the median, in the manner of Ansari and Bradley). A p-value alone would call
drift whatever is measurable, and a thousand frames make every trifle measurable; so it takes an effect too, and both
for some time. docs/decisions/0042-drift.md gives limits, detection delays and false rates.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from station.messages import DriftHealth
from station.settings import HealthSettings

Values = NDArray[np.float64]
Direction = Literal["higher", "lower", "wider"]

CODE = "scores-drift"
"""Of the reason in ``health``."""
P_LIMIT = 0.01
"""Of both tests together (Bonferroni)."""
LOOKS_PER_WINDOW = 20
PERSISTENCE = 5
"""Looks in a row that must agree before the state changes, in either direction: a quarter of the window."""
RELEASE = 0.75
"""Share of the effect's limit below which drift is over; between the two the state stays as it is."""
MIN_REFERENCE = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """Late scores beside those of the calibration.

    Attributes:
        location: probability that a late score is higher than one of the calibration, ties counting half.
        spread: probability that a late score lies further from the calibration's median, in ranks.
        p_value: that both are 0.5, for as many independent scores as there are.
    """

    location: float
    spread: float
    p_value: float


class Reference:
    """The calibration's scores, prepared for comparison."""

    def __init__(self, scores: Sequence[float]) -> None:
        """Take the scores.

        Args:
            scores: (m,), in order of capture.
        """
        values = np.asarray(scores, np.float64)
        self._scores = np.sort(values)
        ranks = _placements(values, self._scores)
        folded = np.abs(ranks - 0.5)
        self._folded = np.sort(folded)
        self._worth = effective_size(ranks)
        self._folded_worth = effective_size(folded)

    def compare(self, late: Values) -> Comparison:
        """Compare late scores, (n,) in order of capture, with the reference."""
        ranks = _placements(late, self._scores)
        folded = np.abs(ranks - 0.5)
        location, p_location = _mann_whitney(late, self._scores, effective_size(ranks), self._worth)
        spread, p_spread = _mann_whitney(folded, self._folded, effective_size(folded), self._folded_worth)
        return Comparison(location, spread, min(1.0, 2 * min(p_location, p_spread)))


class DriftWatch:
    """Compares late scores with the calibration's. ``add`` is for the inspect thread, the rest for any other."""

    def __init__(
        self,
        good_scores: Sequence[float] | None,
        settings: HealthSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with an empty window.

        Args:
            good_scores: of the calibration, in order of capture; None or a handful: the state stays unknown.
            settings: ``drift_window``, ``drift_every``, ``drift_effect``.
            clock: monotonic seconds.
        """
        self._reference = Reference(good_scores) if good_scores and len(good_scores) >= MIN_REFERENCE else None
        self._settings = settings
        self._clock = clock
        self._window: deque[float] = deque(maxlen=settings.drift_window)
        # Scores are taken at irregular times: at regular ones a line that repeats itself would always be met at the
        # same place.
        self._rng = np.random.default_rng()
        self._next = -math.inf
        self._until_look = self._look_every = max(1, settings.drift_window // LOOKS_PER_WINDOW)
        self._direction: Direction | None = None
        self._contrary: Direction | None = None  # what the last looks found instead ...
        self._contrary_looks = 0  # ... and how many in a row
        self._found: tuple[Comparison, Direction | None] | None = None

    def add(self, score: float) -> None:
        """Take the score of an inspected frame; microseconds, but for one look in a twentieth of the window."""
        now = self._clock()
        if self._reference is None or now < self._next:
            return
        self._next = now + self._settings.drift_every * self._rng.uniform(0.5, 1.5)
        self._window.append(score)
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = self._look_every
            if 2 * len(self._window) >= self._settings.drift_window:
                self._look(self._reference.compare(np.array(self._window)))

    def health(self) -> DriftHealth:
        """As ``health`` tells it."""
        frames = len(self._window)
        if self._found is None:
            return DriftHealth(state="unknown", direction=None, effect=None, p_value=None, frames=frames)
        comparison, direction = self._found
        return DriftHealth(
            state="drift" if direction else "stable",
            direction=direction,
            effect=round(comparison.location, 4),
            p_value=comparison.p_value,
            frames=frames,
        )

    def reason(self) -> str | None:
        """What to tell people, ``code: words``; None without drift."""
        if self._found is None:
            return None
        comparison, direction = self._found
        if direction is None:
            return None
        if direction == "wider":
            return (
                f"{CODE}: wider than at calibration: {comparison.spread:.0%} of late scores, against 50% then, lie far "
                "from the middle"
            )
        share = comparison.location if direction == "higher" else 1 - comparison.location
        return f"{CODE}: {direction} than at calibration: {share:.0%} of pairs of a late and a calibration frame say so"

    def _look(self, comparison: Comparison) -> None:
        seen = self._seen(comparison)
        if seen == self._direction:
            self._contrary_looks = 0
        else:
            self._contrary_looks = self._contrary_looks + 1 if seen == self._contrary else 1
            self._contrary = seen
            if self._contrary_looks >= PERSISTENCE:
                self._direction = seen
                self._contrary_looks = 0
        self._found = comparison, self._direction

    def _seen(self, comparison: Comparison) -> Direction | None:
        excess = self._settings.drift_effect - 0.5
        effects: dict[Direction, float] = {
            "higher": comparison.location - 0.5,
            "lower": 0.5 - comparison.location,
            "wider": comparison.spread - 0.5,  # last: whatever moves also lies far from the old middle
        }
        if comparison.p_value <= P_LIMIT:
            for direction, effect in effects.items():
                if effect >= excess:
                    return direction
        if self._direction is not None and effects[self._direction] >= RELEASE * excess:
            return self._direction
        return None


def effective_size(values: Values) -> float:
    """How many independent values these are worth, (n,) in order of capture.

    n / τ, with τ the integrated autocorrelation time, summed by Geyer's initial positive sequence (Statistical Science
    7 (1992) 473-483). Unlike ``calibration.effective_frames`` it assumes no first-order process: scores are noise on a
    level that wanders slowly, whose neighbours are hardly correlated and whose hours are.
    """
    n = values.size
    centred = values - values.mean()
    variance = float(centred @ centred)
    if n < 4 or variance == 0:
        return float(n)
    spectrum = np.fft.rfft(centred, 2 * n)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), 2 * n)[:n] / variance
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    time_constant = 2 * float(pairs[: ends[0] if ends.size else pairs.size].sum()) - 1
    return n / max(1.0, time_constant)


def _placements(values: Values, ordered: Values) -> Values:
    """Share of ``ordered`` below each value, ties counting half."""
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return np.asarray((below + not_above) / (2 * ordered.size), np.float64)


def _mann_whitney(late: Values, ordered: Values, worth: float, reference_worth: float) -> tuple[float, float]:
    """Probability of superiority of ``late``, and the two-sided p-value that it is 0.5 (normal approximation)."""
    effect = float(_placements(late, ordered).mean())
    pooled = np.sort(np.concatenate((late, ordered)))
    deviation = math.sqrt(float(_placements(pooled, pooled).var()) * (1 / worth + 1 / reference_worth))
    if deviation == 0:
        return effect, 1.0
    return effect, math.erfc(abs(effect - 0.5) / deviation / math.sqrt(2))
