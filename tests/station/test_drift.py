import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from station.health.drift import (
    CODE,
    LOOKS_PER_WINDOW,
    PERSISTENCE,
    DriftWatch,
    Reference,
    _mann_whitney,
    effective_size,
)
from station.settings import HealthSettings

SETTINGS = HealthSettings(drift_every=0, drift_window=200)
WINDOW = SETTINGS.drift_window
LOOK = WINDOW // LOOKS_PER_WINDOW
FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def good(n, seed=0, loc=100.0, scale=10.0):
    return np.random.default_rng(seed).gumbel(loc, scale, n)


@pytest.fixture
def watch():
    return DriftWatch(list(good(500, 99)), SETTINGS)


def feed(watch, scores):
    """Direction after each score."""
    found = []
    for score in scores:
        watch.add(float(score))
        found.append(watch.health().direction)
    return found


# --- the test's statistics


@pytest.mark.parametrize("shift", [0.0, 3.0, -8.0])
@pytest.mark.parametrize("decimals", [None, -1])  # rounded to tens: ties everywhere
def test_effect_and_p_value_are_those_of_mann_whitney(shift, decimals):
    late, reference = good(150, 1) + shift, good(400, 2)
    if decimals is not None:
        late, reference = late.round(decimals), reference.round(decimals)
    effect, p = _mann_whitney(late, np.sort(reference), late.size, reference.size)
    expected = stats.mannwhitneyu(late, reference, use_continuity=False, method="asymptotic")
    assert effect == pytest.approx(expected.statistic / (late.size * reference.size))
    assert p == pytest.approx(expected.pvalue, rel=0.05)


def test_a_wider_distribution_shows_in_the_spread_alone():
    reference = Reference(list(good(1000, 1)))
    median = float(np.median(good(1000, 1)))
    wide = reference.compare(median + 3 * (good(1000, 2) - median))
    assert wide.spread > 0.75
    assert abs(wide.location - 0.5) < 0.05
    assert wide.p_value < 1e-6


@given(arrays(np.float64, st.integers(1, 60), elements=FINITE), st.lists(FINITE, min_size=20, max_size=60))
def test_whatever_the_scores_the_figures_stay_in_their_ranges(late, reference):
    found = Reference(reference).compare(late)
    assert 0 <= found.location <= 1
    assert 0 <= found.spread <= 1
    assert 0 <= found.p_value <= 1


@given(
    arrays(np.float64, 30, elements=st.integers(0, 40).map(float)),
    st.lists(st.integers(0, 40).map(float), min_size=20, max_size=60),
)
def test_only_the_order_of_scores_counts(late, reference):
    plain = Reference(reference).compare(late)
    bent = Reference([score**3 + 7 for score in reference]).compare(late**3 + 7)
    assert bent == plain


def test_all_scores_alike_are_no_drift():
    found = Reference([5.0] * 50).compare(np.full(100, 5.0))
    assert (found.location, found.p_value) == (0.5, 1.0)


# --- how many independent frames


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_correlated_frames_count_less(phi):
    rng, n = np.random.default_rng(0), 20_000
    noise = rng.normal(size=n)
    values = np.empty(n)
    values[0] = noise[0]
    for i in range(1, n):
        values[i] = phi * values[i - 1] + noise[i]
    assert effective_size(values) == pytest.approx(n * (1 - phi) / (1 + phi), rel=0.3)


def test_a_slow_level_below_the_noise_is_noticed():
    """Lag-1 correlation of these is 0.2: a first-order process would be worth two thirds of its frames."""
    rng, n = np.random.default_rng(0), 2000
    values = np.repeat(rng.normal(size=n // 100), 100) + 2 * rng.normal(size=n)
    assert effective_size(values) < n / 8


@given(arrays(np.float64, st.integers(1, 50), elements=FINITE))
def test_no_more_frames_than_there_are(values):
    assert 0 < effective_size(values) <= values.size


def test_alternating_scores_are_worth_no_more_than_their_number():
    assert effective_size(np.tile([0.0, 1.0], 50)) == 100


# --- the watch


@pytest.mark.parametrize("scores", [None, [], [1.0] * 19])
def test_without_a_calibration_it_is_unknown(scores):
    watch = DriftWatch(scores, SETTINGS)
    feed(watch, good(2 * WINDOW))
    health = watch.health()
    assert (health.state, health.direction, health.effect, health.p_value) == ("unknown", None, None, None)
    assert watch.reason() is None


def test_unknown_until_half_the_window_is_there(watch):
    feed(watch, good(WINDOW // 2 - 1))
    assert watch.health().state == "unknown"
    assert watch.health().frames == WINDOW // 2 - 1
    feed(watch, good(LOOK))
    assert watch.health().state == "stable"


def test_good_frames_are_stable(watch):
    assert set(feed(watch, good(10 * WINDOW, 1))) == {None}
    health = watch.health()
    assert health.state == "stable"
    assert health.effect == pytest.approx(0.5, abs=0.1)
    assert health.frames == WINDOW
    assert watch.reason() is None


@pytest.mark.parametrize(
    ("late", "direction", "words"),
    [
        (lambda x: x + 20, "higher", "higher than at calibration: "),
        (lambda x: x - 20, "lower", "lower than at calibration: "),
        (lambda x: 104 + 4 * (x - 104), "wider", "wider than at calibration: "),
    ],
)
def test_a_lasting_change_is_told_with_its_direction_and_its_end_too(watch, late, direction, words):
    feed(watch, good(WINDOW, 1))
    told = feed(watch, late(good(3 * WINDOW, 2)))
    assert set(told) == {None, direction}
    assert told[-1] == direction
    health = watch.health()
    assert health.state == "drift"
    assert health.p_value <= 0.01
    assert watch.reason().startswith(f"{CODE}: {words}")
    back = feed(watch, good(3 * WINDOW, 3))
    assert back[-1] is None
    assert watch.health().state == "stable"
    assert watch.reason() is None


def test_the_reason_of_lower_scores_tells_their_share():
    watch = DriftWatch(list(good(500)), SETTINGS)
    feed(watch, good(2 * WINDOW) - 1000)
    assert (
        watch.reason()
        == "scores-drift: lower than at calibration: 100% of pairs of a late and a calibration frame say so"
    )


def test_a_change_too_small_to_matter_is_none(watch):
    """Significant by any p-value, and of no consequence."""
    feed(watch, good(WINDOW, 1))
    told = feed(watch, good(20 * WINDOW, 2) + 5)
    assert set(told) == {None}
    assert watch.health().p_value < 0.01


@pytest.mark.parametrize("length", [1, WINDOW // 8, WINDOW // 3])
def test_defects_that_pass_are_no_drift(watch, length):
    """However high they score: only their number counts, and that stays below the effect's limit."""
    scores = good(4 * WINDOW, 1)
    scores[WINDOW : WINDOW + length] = 1e6
    assert set(feed(watch, scores)) == {None}


def test_a_quarter_of_all_frames_defective_is_no_drift(watch):
    scores = good(6 * WINDOW, 1)
    scores[::4] = 1e6
    assert set(feed(watch, scores)) == {None}


def test_it_has_to_last(watch):
    feed(watch, good(WINDOW, 1))
    told = feed(watch, good(WINDOW, 2) + 1000)
    first = told.index("higher") + 1
    assert first >= 0.42 * WINDOW + (PERSISTENCE - 1) * LOOK


def test_frames_are_taken_at_intervals_that_vary():
    now = [0.0]
    watch = DriftWatch(list(good(100)), HealthSettings(drift_window=100_000, drift_every=2.0), clock=lambda: now[0])
    taken = []
    for tick in range(100_000):
        now[0] = tick / 100
        before = watch.health().frames
        watch.add(100.0)
        if watch.health().frames > before:
            taken.append(now[0])
    gaps = np.diff(taken)
    assert gaps.mean() == pytest.approx(2.0, rel=0.1)
    assert gaps.min() >= 1.0
    assert gaps.max() <= 3.02
    assert gaps.std() > 0.4
