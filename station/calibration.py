"""The threshold, from scores of good frames or of good and defective ones; and ``calibration.json``.

Good frames only: peaks over threshold. The highest scores are fitted with a generalized Pareto distribution (GPD),
the limit law of exceedances (Pickands 1975), and the fitted tail says which score a good frame exceeds with the
allowed probability. docs/decisions/0002-threshold-from-good-frames.md tells why this way.

Good and defective frames: the threshold with the highest balanced accuracy (TPR + TNR) / 2, which is where Youden's
J = TPR + TNR - 1 is highest (paper, V.B). With defects planted into good frames in the place of real ones: the highest
threshold that is as good, within what so few frames can tell (docs/decisions/0074).
"""

import math
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engines.bundle import Bundle
from engines.files import open_regular
from station.health.camera import CameraProfile
from station.settings import JudgeSettings, Roi

Scores = NDArray[np.float64]

MIN_GOOD_FRAMES = 20
"""With fewer there is no tail to fit: the highest fifth would be less than four scores."""
MIN_EXCEEDANCES = 3
MAX_KEPT_SCORES = 1000
MAX_FILE_BYTES = 2**20
BOOTSTRAP_FITS = 1000
CONFIDENCE = 0.95
_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
SHAPE_PRIOR_WEIGHT = 10
"""The shape is drawn towards 0 as by this many exceedances that have it (see ``fit_tail``)."""
FROZEN_CORRELATION = 0.5

_AGAIN = "run `station calibrate` again"


class CalibrationError(Exception):
    """No threshold can be had from these scores, or the calibration file cannot be used; says what to do."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Tail(_Model):
    """A generalized Pareto tail: P(score > s) = fraction · (1 + shape · (s - level) / scale)^(-1 / shape)."""

    level: float = Field(description="Score above which the tail was fitted.")
    fraction: float = Field(gt=0, le=1, description="Share of the good frames above level.")
    n_exceedances: int = Field(ge=MIN_EXCEEDANCES, description="Good frames above level.")
    shape: float = Field(description="0: exponential; negative: the tail ends; positive: heavy.")
    scale: float = Field(gt=0)

    def exceedance(self, score: float) -> float:
        """Probability that a good frame scores above ``score``, which must not lie below ``level``."""
        excess = (score - self.level) / self.scale
        if abs(self.shape) < 1e-9:
            return self.fraction * math.exp(-excess)
        base = 1 + self.shape * excess
        return self.fraction * base ** (-1 / self.shape) if base > 0 else 0.0

    def quantile(self, probability: float) -> float:
        """Score that a good frame exceeds with ``probability``, at most ``fraction``."""
        log_ratio = math.log(self.fraction / probability)
        if abs(self.shape) < 1e-9:
            return self.level + self.scale * log_ratio
        return self.level + self.scale * math.expm1(self.shape * log_ratio) / self.shape


class FalseAlarmThreshold(_Model):
    """Threshold for a false-alarm budget."""

    rate: float = Field(gt=0, lt=1, description="Allowed probability that one good frame raises an alarm.")
    threshold: float
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end of the interval.")
    confidence: float = Field(default=CONFIDENCE, description="Of the interval (bootstrap).")


class Separation(_Model):
    """How well the score tells good from defective frames."""

    threshold: float = Field(description="Of the highest balanced accuracy; with planted defects, see method.")
    balanced_accuracy: float = Field(ge=0, le=1)
    defects_found: float = Field(ge=0, le=1, description="Share of defective frames above threshold (TPR).")
    good_passed: float = Field(ge=0, le=1, description="Share of good frames not above threshold (TNR).")
    auroc: float = Field(ge=0, le=1, description="Probability that a defective frame outscores a good one.")


class PlantedKind(_Model):
    """How one kind of planted defect was found."""

    n: int = Field(ge=1, description="Good frames with such a defect planted into them.")
    found: int = Field(ge=0, description="Those that score above the threshold.")


class ScoreSummary(_Model):
    """Distribution of the scores; the station compares what it sees with it."""

    n: int = Field(ge=1)
    mean: float
    std: float = Field(ge=0)
    quantiles: dict[str, float] = Field(description="Score by probability, '0' (lowest) to '1' (highest).")

    @field_validator("quantiles")
    @classmethod
    def _those_that_are_used(cls, quantiles: dict[str, float]) -> dict[str, float]:
        if missing := {"0.5", "1"} - quantiles.keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        return quantiles

    @property
    def median(self) -> float:
        """The middle score."""
        return self.quantiles["0.5"]

    @property
    def highest(self) -> float:
        """The highest score."""
        return self.quantiles["1"]


class CameraView(_Model):
    """What the scores were taken from. A calibration holds for this view only."""

    source: str = Field(description="Camera or folder, without user name and password.")
    frame_height: int = Field(ge=1)
    frame_width: int = Field(ge=1)
    roi: Roi | None = Field(description="Region of interest; null: the whole frame.")


class Calibration(_Model):
    """``calibration.json``."""

    schema_version: Literal[1] = 1
    created_at: datetime = Field(description="UTC")
    bundle_name: str
    bundle_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="sha256 of manifest.json.")
    lambda_: float = Field(alias="lambda", ge=0, le=1, description="Weight of the feature error, eq. 7.")
    frame_score: Literal["max", "mean_top_k"]
    top_k: int = Field(ge=1)
    camera: CameraView
    threshold: float = Field(gt=0, description="A frame that scores above it is anomalous.")
    method: Literal["false_alarm_rate", "balanced_accuracy", "planted_defects"] = Field(
        description="How the threshold was chosen. planted_defects: the highest whose balanced accuracy is within one "
        "standard error of the best, with defects planted into good frames in the place of real ones."
    )
    n_good: int = Field(ge=MIN_GOOD_FRAMES)
    n_defect: int = Field(ge=0)
    good: ScoreSummary
    defect: ScoreSummary | None
    tail: Tail
    false_alarms: FalseAlarmThreshold
    separation: Separation | None = Field(description="Null without defective frames.")
    planted: dict[str, PlantedKind] | None = Field(
        default=None, description="By kind; null where the defective frames are real ones, or there are none."
    )
    warnings: tuple[str, ...] = Field(description="What limits the trust in the threshold, in plain words.")
    healthy: CameraProfile | None = Field(
        default=None, description="What good frames look like to the rules that recognise camera faults."
    )
    good_scores: tuple[float, ...] | None = Field(
        default=None,
        max_length=MAX_KEPT_SCORES,
        description="Good scores in order of capture, evenly thinned, to compare later ones with. Null: made before "
        "they were kept.",
    )


def calibrate_good(scores: Scores, false_alarm_rate: float, seed: int = 0) -> tuple[Tail, FalseAlarmThreshold]:
    """Threshold that good frames exceed with probability ``false_alarm_rate``, from good frames only.

    Args:
        scores: (n,), frame scores of good frames in order of capture.
        false_alarm_rate: probability per frame.
        seed: of the bootstrap.

    Raises:
        CalibrationError: too few frames, or they are all alike.
    """
    good = GoodScores(scores, seed)
    return good.tail, good.threshold(false_alarm_rate)


class GoodScores:
    """Scores of good frames: which threshold a budget of false alarms asks for, and what a threshold lets through.

    Intervals are a parametric bootstrap: as many frames are drawn from the fitted tail, fitted, and asked the same
    question. Drawing the scores themselves again would keep ties at the top and gives intervals that hold the true
    value clearly less often than they say. Frames that repeat one another count as fewer (``effective_frames``).

    Attributes:
        scores: (n,), in order of capture.
        tail: fitted to them.
        worth: how many independent frames they are worth.
    """

    def __init__(self, scores: Scores, seed: int = 0) -> None:
        """Fit the tail.

        Args:
            scores: (n,), in order of capture.
            seed: of the bootstrap.

        Raises:
            CalibrationError: too few frames, or they are all alike.
        """
        self.tail = fit_tail(scores)
        self.scores = scores
        self.worth = effective_frames(scores)
        self._seed = seed

    def threshold(self, rate: float) -> FalseAlarmThreshold:
        """Threshold that a good frame exceeds with probability ``rate``.

        Where the budget is larger than the share of frames in the tail it is an ordinary quantile of the scores.

        Raises:
            CalibrationError: ``rate`` is no probability.
        """
        if not 0 < rate < 1:
            raise CalibrationError(f"false-alarm rate {rate:g}: must lie between 0 and 1, such as 1e-3")
        if rate >= self.tail.fraction:
            rng = np.random.default_rng(self._seed)
            draws = [np.quantile(rng.choice(self.scores, self.worth), 1 - rate) for _ in range(BOOTSTRAP_FITS)]
            threshold = float(np.quantile(self.scores, 1 - rate))
        else:
            draws = [tail.quantile(rate) for tail in self._refits]
            threshold = self.tail.quantile(rate)
        low, high = np.quantile(draws, _ENDS)
        return FalseAlarmThreshold(
            rate=rate, threshold=threshold, low=min(float(low), threshold), high=max(float(high), threshold)
        )

    def exceedance(self, threshold: float) -> "Chance":
        """How probable it is that a good frame scores above ``threshold``, wherever that is."""
        if threshold < self.tail.level:
            p = float((self.scores > threshold).mean())
            return Chance(p, *wilson(p * self.worth, self.worth))
        p = self.tail.exceedance(threshold)
        low, high = np.quantile([tail.exceedance(threshold) for tail in self._refits], _ENDS)
        return Chance(p, min(float(low), p), max(float(high), p))

    @cached_property
    def _refits(self) -> list[Tail]:
        rng = np.random.default_rng(self._seed)
        return [_refit(self.tail, self.worth, rng) for _ in range(BOOTSTRAP_FITS)]


class Chance(NamedTuple):
    """A probability and its 95 % interval."""

    p: float
    low: float
    high: float


def wilson(k: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which ``k`` of ``n`` is a sample (Wilson, JASA 22, 1927)."""
    z = 1.96
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def fit_tail(scores: Scores) -> Tail:
    """Fit the highest min(n / 5, 3·√n) scores (the rule of Vehtari et al., "Pareto smoothed importance sampling").

    Raises:
        CalibrationError: too few frames, or they are all alike.
    """
    n = scores.size
    if n < MIN_GOOD_FRAMES:
        raise CalibrationError(
            f"{n} good frame{'s' if n != 1 else ''}: at least {MIN_GOOD_FRAMES} are needed, a few hundred are better"
        )
    if not np.isfinite(scores).all():
        raise CalibrationError("some scores are not finite numbers")
    ordered = np.sort(scores)
    k = int(min(n / 5, 3 * math.sqrt(n)))
    level = ordered[n - k - 1]
    excess = ordered[n - k :] - level
    excess = excess[excess > 0]
    if np.unique(excess).size < MIN_EXCEEDANCES:
        different = np.unique(scores).size
        raise CalibrationError(
            f"the {n} good frames have only {different} different score{'s' if different != 1 else ''}: it looks "
            "like the same picture again and again. Is the camera frozen, or the folder full of copies?"
        )
    shape, scale = _zhang_stephens(excess)
    return Tail(level=float(level), fraction=excess.size / n, n_exceedances=int(excess.size), shape=shape, scale=scale)


def _refit(tail: Tail, n: int, rng: np.random.Generator) -> Tail:
    """The tail as another ``n`` frames of the same kind would have given it."""
    m = max(int(rng.binomial(n, tail.fraction)), MIN_EXCEEDANCES)
    exponential = rng.standard_exponential(m)
    excess = exponential if abs(tail.shape) < 1e-9 else np.expm1(tail.shape * exponential) / tail.shape
    shape, scale = _zhang_stephens(np.sort(tail.scale * excess))
    return Tail(level=tail.level, fraction=m / n, n_exceedances=m, shape=shape, scale=scale)


def _zhang_stephens(excess: Scores) -> tuple[float, float]:
    """Shape and scale of a GPD: Zhang & Stephens, Technometrics 51 (2009) 316-325, with a prior on the shape.

    Their estimator is the posterior mean of θ (= -shape / scale) under a prior made from the data; it always
    exists and needs no iterations. A handful of exceedances still leaves the shape very uncertain, and with it
    every extrapolated quantile, so the shape is drawn towards 0, the exponential tail of scores that are maxima
    over many patches: the weighting that Vehtari et al. use, with their centre of 0.5 (which suits importance
    ratios) replaced.

    Args:
        excess: (n,), ascending, > 0.
    """
    x = excess
    n = x.size
    m = 20 + math.isqrt(n)
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    tiny = 1e-12 / x[-1]
    theta[np.abs(theta) < tiny] = tiny  # θ = 0 is 0 / 0 below; the limit is the exponential tail
    k = -np.log1p(-theta[:, None] * x).mean(axis=1)
    log_likelihood = n * (np.log(theta / k) + k - 1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    best = float((theta * weight).sum() / weight.sum())
    best = tiny if abs(best) < tiny else best
    minus_shape = -float(np.log1p(-best * x).mean())
    return -minus_shape * n / (n + SHAPE_PRIOR_WEIGHT), minus_shape / best


def calibrate_labelled(good: Scores, defect: Scores) -> Separation:
    """Threshold of the highest balanced accuracy, in the middle of the widest gap that reaches it.

    Args:
        good: (n,), frame scores of good frames.
        defect: (m,), frame scores of defective frames, m >= 1.

    Raises:
        CalibrationError: no threshold is better than guessing.
    """
    curve = roc(good, defect)
    balanced = _balanced(curve)
    # Thresholds lie between neighbouring scores: of equally good ones take that with most room on both sides.
    values = np.unique(np.concatenate((good, defect)))
    room = np.concatenate(([0.0], np.diff(values), [0.0]))[::-1]
    best = int(np.lexsort((room, balanced))[-1])
    if balanced[best] <= 0.5:
        raise CalibrationError(
            "the scores do not tell good from defective frames: no threshold is better than guessing. Are the "
            "folders of good and defective frames swapped, or was the bundle trained on another product?"
        )
    return _separation(curve, best, auroc(good, defect))


def calibrate_planted(good: Scores, planted: Scores) -> Separation:
    """Threshold of the fewest false alarms among those that are as good as the best, within one standard error.

    The highest balanced accuracy itself would follow the oddest of a few dozen frames, and planted defects are only
    like real ones. Of what they cannot tell apart, the choice is the one that is quiet on the line (the rule of one
    standard error: Breiman et al., "Classification and Regression Trees", 1984, 3.4.3).

    Args:
        good: (n,), frame scores of good frames.
        planted: (m,), of good frames with a defect in each, m >= 1.

    Raises:
        CalibrationError: no threshold is better than guessing.
    """
    curve = roc(good, planted)
    _, found, false = curve
    balanced = _balanced(curve)
    best = int(balanced.argmax())
    if balanced[best] <= 0.5:
        raise CalibrationError(
            "the scores do not tell planted defects from good frames: no threshold is better than guessing. Was the "
            "bundle trained on another product?"
        )
    spread = max(false[best] * (1 - false[best]), (1 - 1 / good.size) / good.size)  # none of n alarmed: not never
    error = math.sqrt(spread / good.size + found[best] * (1 - found[best]) / planted.size) / 2
    return _separation(curve, int(np.argmax(balanced >= balanced[best] - error)), auroc(good, planted))


def _balanced(curve: tuple[Scores, Scores, Scores]) -> Scores:
    """Balanced accuracy at each threshold of what ``roc`` returns."""
    _, found, false = curve
    return (found + 1 - false) / 2


def _separation(curve: tuple[Scores, Scores, Scores], chosen: int, auroc: float) -> Separation:
    """What the ``chosen`` of the thresholds of ``curve``, as ``roc`` returns it, does."""
    thresholds, found, false = curve
    return Separation(
        threshold=float(thresholds[chosen]),
        balanced_accuracy=float(_balanced(curve)[chosen]),
        defects_found=float(found[chosen]),
        good_passed=float(1 - false[chosen]),
        auroc=auroc,
    )


def roc(good: Scores, defect: Scores) -> tuple[Scores, Scores, Scores]:
    """Every threshold that matters, with the share of defects found and of good frames alarmed.

    Returns:
        thresholds (t,), descending, midway between neighbouring scores and beyond both ends; true-positive
        rate (t,); false-positive rate (t,). Both rates rise from 0 to 1.
    """
    values = np.unique(np.concatenate((good, defect)))
    middles = (values[1:] + values[:-1]) / 2
    thresholds = np.concatenate(([values[0] - 1], middles, [values[-1] + 1]))[::-1]
    found = 1 - np.searchsorted(np.sort(defect), thresholds, side="right") / defect.size
    false = 1 - np.searchsorted(np.sort(good), thresholds, side="right") / good.size
    return thresholds, found, false


def auroc(good: Scores, defect: Scores) -> float:
    """Probability that a defective frame outscores a good one, ties counting half (Mann-Whitney U / nm)."""
    ordered = np.sort(good)
    below = np.searchsorted(ordered, defect, side="left")
    not_above = np.searchsorted(ordered, defect, side="right")
    return float((below + not_above).mean() / 2 / good.size)


def summarize(scores: Scores) -> ScoreSummary:
    """Number, mean, standard deviation and quantiles."""
    return ScoreSummary(
        n=scores.size,
        mean=float(scores.mean()),
        std=float(scores.std()),
        quantiles={f"{q:g}": float(np.quantile(scores, q)) for q in QUANTILES},
    )


def thinned(scores: Scores) -> tuple[float, ...]:
    """At most ``MAX_KEPT_SCORES`` of the scores, evenly spread and in their order, to six digits."""
    n = scores.size
    kept = scores if n <= MAX_KEPT_SCORES else scores[np.linspace(0, n - 1, MAX_KEPT_SCORES).round().astype(np.int64)]
    return tuple(float(f"{score:.6g}") for score in kept)


def effective_frames(scores: Scores) -> int:
    """How many independent frames these are worth, scores in order of capture.

    Neighbouring video frames show nearly the same and so repeat what they say. For a first-order autoregressive
    process with lag-1 correlation r, n frames say as much about a mean as n (1 - r) / (1 + r) independent ones.
    """
    n = scores.size
    centred = scores - scores.mean()
    variance = float(centred @ centred)
    if n < MIN_GOOD_FRAMES or variance == 0:
        return n
    r = float(centred[1:] @ centred[:-1]) / variance
    return n if r < FROZEN_CORRELATION else max(1, round(n * (1 - r) / (1 + r)))


def written(score: float) -> str:
    """A score as people write it: five digits, and no exponent for those of large patches."""
    return f"{score:.5g}" if abs(score) < 99_999.5 else f"{score:.0f}"


def odds(probability: float) -> str:
    """A probability as people say it: "1 in 1,000"."""
    return f"1 in {1 / probability:,.0f}" if probability <= 0.1 else f"{100 * probability:.0f} in 100"


def caveats(good: Scores, tail: Tail, budget: FalseAlarmThreshold | None) -> list[str]:
    """What limits the trust in a threshold, in plain words.

    Args:
        good: (n,), frame scores of good frames in order of capture.
        tail: fitted to them.
        budget: None where the threshold does not come from a false-alarm budget.
    """
    found: list[str] = []
    n = good.size
    if budget is not None:
        needed = math.ceil(1 / budget.rate)
        if n < needed:
            found.append(
                f"{n} good frames are few for a budget of {odds(budget.rate)}: the threshold is extrapolated with "
                f"the fitted tail. {needed:,} frames would show it directly; these can vouch for about 1 in {n:,}."
            )
        if budget.high - budget.low > budget.threshold - float(np.median(good)):
            found.append(
                f"The interval of the threshold, {written(budget.low)} to {written(budget.high)}, is wider than its "
                "distance from an ordinary good frame. More good frames make it narrower."
            )
    worth = effective_frames(good)
    if worth < n:
        found.append(
            f"Neighbouring frames are much alike: the {n} frames say only as much as about {worth} independent ones. "
            "Take frames further apart, of different products and times of day."
        )
    if tail.shape > 0.3:
        found.append(
            f"A few good frames score far above the rest (heavy tail, shape {tail.shape:.2f}). Look at the "
            "highest-scoring ones in the report: a defect among them pushes the threshold up."
        )
    return found


def load_calibration(path: Path, bundle: Bundle, judge: JudgeSettings | None = None) -> Calibration:
    """Read ``calibration.json`` and make sure that it was made for this bundle, and for this frame score.

    Raises:
        CalibrationError: missing, damaged, or made for something else.
    """
    try:
        with open(path.resolve(), "rb", opener=open_regular) as file:  # links are fine, a pipe would never end
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such calibration; `station calibrate` writes it") from None
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
    except RuntimeError as error:  # links in a circle, before Python 3.13
        raise CalibrationError(f"{path}: cannot be read: {error}") from error
    if len(text) > MAX_FILE_BYTES:
        raise CalibrationError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB; this is no calibration")
    try:
        calibration = Calibration.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CalibrationError(f"{path}: {key + ': ' if key else ''}{first['msg']}; {_AGAIN}") from error
    if calibration.bundle_sha256 != bundle.digest:
        raise CalibrationError(
            f"{path}: was made for bundle {calibration.bundle_name} ({calibration.bundle_sha256[:12]}…), not for "
            f"{bundle.manifest.name} ({bundle.digest[:12]}…) in {bundle.path}. Scores of two bundles cannot be "
            f"compared: {_AGAIN}"
        )
    if judge is not None and _statistic(judge) != _statistic(calibration):
        raise CalibrationError(
            f"{path}: was made for frame score {_statistic(calibration)}, the settings ask for {_statistic(judge)} "
            f"(judge.frame_score, judge.top_k): {_AGAIN}"
        )
    return calibration


def _statistic(source: JudgeSettings | Calibration) -> str:
    return "max" if source.frame_score == "max" else f"mean_top_k with k = {source.top_k}"
