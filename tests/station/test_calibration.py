import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from station.calibration import (
    MAX_KEPT_SCORES,
    SHAPE_PRIOR_WEIGHT,
    CalibrationError,
    Tail,
    auroc,
    calibrate_good,
    calibrate_labelled,
    calibrate_planted,
    caveats,
    effective_frames,
    fit_tail,
    load_calibration,
    odds,
    roc,
    thinned,
)
from station.settings import JudgeSettings
from tests.support.bundles import make_bundle
from tests.support.calibrations import GOOD, make_calibration


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy")


# --- the tail


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.2])
def test_fit_recovers_a_generalized_pareto_tail(shape):
    exceedances = stats.genpareto(shape, scale=7).rvs(20_000, random_state=1)
    tail = fit_tail(1000 + exceedances)  # above any level the excess is again GPD, of the same shape
    assert tail.shape == pytest.approx(shape, abs=0.12)
    assert tail.scale == pytest.approx(7 + shape * (tail.level - 1000), rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_shape_and_scale_are_those_of_zhang_and_stephens(seed):
    scores = np.random.default_rng(seed).gumbel(100, 10, 400)
    tail = fit_tail(scores)
    x = np.sort(scores[scores > tail.level] - tail.level)
    n = x.size
    # The posterior mean of θ by fine quadrature over their prior, with SciPy's likelihood.
    u = (np.arange(20_000) + 0.5) / 20_000
    thetas = 1 / x[-1] + (1 - np.sqrt(1 / u)) / (3 * x[int(n / 4 + 0.5) - 1])
    ks = -np.log1p(-thetas[:, None] * x).mean(axis=1)
    log_likelihood = stats.genpareto.logpdf(x, -ks[:, None], scale=(ks / thetas)[:, None]).sum(axis=1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    theta = (thetas * weights).sum() / weights.sum()
    k = -np.log1p(-theta * x).mean()
    assert tail.shape == pytest.approx(-k * n / (n + SHAPE_PRIOR_WEIGHT), abs=0.005)
    assert tail.scale == pytest.approx(k / theta, rel=0.005)


@settings(deadline=None)
@given(st.sampled_from([-0.5, -0.1, -1e-3, 0.0, 1e-3, 0.2, 0.5]), st.floats(0.1, 100), st.floats(1e-5, 0.1))
def test_tail_agrees_with_scipy(shape, scale, probability):
    tail = Tail(level=50.0, fraction=0.1, n_exceedances=30, shape=shape, scale=scale)
    reference = stats.genpareto(shape, loc=50, scale=scale)
    score = tail.quantile(probability)
    assert score == pytest.approx(reference.isf(probability / 0.1), rel=1e-6)
    assert tail.exceedance(score) == pytest.approx(probability, rel=1e-6)


def test_tail_that_ends_is_never_exceeded_beyond_its_end():
    assert Tail(level=0, fraction=0.1, n_exceedances=30, shape=-0.5, scale=1).exceedance(2.5) == 0


@pytest.mark.parametrize(
    "distribution",
    [stats.norm(100, 5), stats.gumbel_r(100, 5), stats.gamma(9, scale=10)],
    ids=["norm", "gumbel", "gamma"],
)
def test_threshold_keeps_the_false_alarm_budget(distribution):
    # Typically, not each time: the median over repetitions of what the thresholds really let through.
    rng = np.random.default_rng(2)
    real = [distribution.sf(fit_tail(distribution.rvs(300, random_state=rng)).quantile(1e-3)) for _ in range(60)]
    assert 0.4e-3 < np.median(real) < 2e-3


def test_interval_holds_the_true_threshold_about_as_often_as_it_says():
    distribution = stats.gumbel_r(100, 5)
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(12):
        _, found = calibrate_good(distribution.rvs(200, random_state=rng), 1e-3, seed=seed)
        assert found.low <= found.threshold <= found.high
        inside += found.low <= distribution.isf(1e-3) <= found.high
    assert inside >= 10


def test_interval_is_repeatable_and_narrows_with_more_frames():
    few, many = GOOD[:100], np.random.default_rng(0).gumbel(100, 10, 5000)
    _, first = calibrate_good(few, 1e-3)
    _, again = calibrate_good(few, 1e-3)
    _, narrow = calibrate_good(many, 1e-3)
    assert first == again
    assert narrow.high - narrow.low < (first.high - first.low) / 2


def test_budget_inside_the_scores_is_their_quantile():
    _, found = calibrate_good(GOOD, 0.5)
    assert found.threshold == pytest.approx(np.median(GOOD))


def test_too_few_frames_are_refused():
    with pytest.raises(CalibrationError, match="19 good frames: at least 20"):
        fit_tail(GOOD[:19])


def test_frozen_camera_is_refused():
    with pytest.raises(CalibrationError, match=r"only 1 different score: .*frozen"):
        fit_tail(np.full(100, 5.0))


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(CalibrationError, match="not finite"):
        fit_tail(np.append(GOOD, np.nan))


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, float("nan")])
def test_absurd_budget_is_refused(rate):
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        calibrate_good(GOOD, rate)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=20, max_size=80), st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_scores_with_many_ties_give_a_finite_threshold_or_a_clear_error(scores, rate):
    good = np.array(scores, np.float64)
    try:
        tail = fit_tail(good)
    except CalibrationError:
        return
    threshold = tail.quantile(min(rate, tail.fraction))
    assert np.isfinite(threshold)
    assert threshold >= tail.level


# --- labelled


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_auroc_agrees_with_scikit_learn(good, defect):
    labels = [0] * len(good) + [1] * len(defect)
    expected = roc_auc_score(labels, good + defect)
    assert auroc(np.array(good, float), np.array(defect, float)) == pytest.approx(expected)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20), st.lists(st.integers(0, 12), min_size=1, max_size=20))
def test_no_threshold_has_a_higher_balanced_accuracy(good, defect):
    good, defect = np.array(good, float), np.array(defect, float)
    best = max(((defect > t).mean() + (good <= t).mean()) / 2 for t in np.arange(-0.5, 13))
    if best <= 0.5:
        with pytest.raises(CalibrationError, match="no threshold is better than guessing"):
            calibrate_labelled(good, defect)
        return
    found = calibrate_labelled(good, defect)
    assert found.balanced_accuracy == pytest.approx(best)
    assert found.defects_found == pytest.approx((defect > found.threshold).mean())
    assert found.good_passed == pytest.approx((good <= found.threshold).mean())


def test_threshold_lies_in_the_middle_of_the_gap():
    found = calibrate_labelled(np.array([1.0, 2.0, 3.0]), np.array([9.0, 10.0]))
    assert (found.threshold, found.balanced_accuracy, found.auroc) == (6.0, 1.0, 1.0)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_planted_defects_choose_the_highest_threshold_that_is_as_good_as_the_best(good, planted):
    """Within one standard error, told anew here in plain words."""
    good, planted = np.array(good, float), np.array(planted, float)
    candidates = np.arange(-0.5, 13)
    accuracies = [((planted > t).mean() + (good <= t).mean()) / 2 for t in candidates]
    if max(accuracies) <= 0.5:
        with pytest.raises(CalibrationError, match="do not tell planted defects from good frames"):
            calibrate_planted(good, planted)
        return
    found = calibrate_planted(good, planted)
    best = candidates[int(np.flatnonzero(np.isclose(accuracies, max(accuracies)))[-1])]
    false, true = (good > best).mean(), (planted > best).mean()
    variance = max(false * (1 - false), (1 - 1 / good.size) / good.size) / good.size + true * (1 - true) / planted.size
    least = max(accuracies) - variance**0.5 / 2
    assert found.balanced_accuracy >= least - 1e-9
    next_score = min((s for s in (*good, *planted) if s > found.threshold), default=np.inf)
    assert all(a < least + 1e-9 for a, t in zip(accuracies, candidates, strict=True) if t > next_score)
    assert found.balanced_accuracy == pytest.approx(
        ((planted > found.threshold).mean() + (good <= found.threshold).mean()) / 2
    )


def test_a_few_faint_planted_defects_are_not_worth_a_false_alarm():
    good, planted = np.arange(40.0), np.repeat([38.5, 100.0], [4, 96])
    assert calibrate_labelled(good, planted).threshold == 38.25
    assert calibrate_planted(good, planted).threshold == 69.5


def test_roc_runs_from_nothing_to_everything():
    thresholds, found, false = roc(GOOD, GOOD + 10)
    assert (found[0], false[0], found[-1], false[-1]) == (0, 0, 1, 1)
    assert (np.diff(thresholds) < 0).all()
    assert (np.diff(found) >= 0).all()
    assert (np.diff(false) >= 0).all()


# --- plain words


def test_few_frames_are_told():
    tail, found = calibrate_good(GOOD, 1e-4)
    assert any("500 good frames are few for a budget of 1 in 10,000" in text for text in caveats(GOOD, tail, found))
    assert caveats(GOOD, tail, None) == []  # the threshold does not come from the budget
    tail, found = calibrate_good(GOOD, 1e-2)
    assert caveats(GOOD, tail, found) == []


def test_frames_that_repeat_each_other_are_told():
    held = np.repeat(GOOD[:100], 10) + np.random.default_rng(1).normal(0, 0.1, 1000)
    assert effective_frames(GOOD) == GOOD.size
    assert effective_frames(held) < 200
    tail, found = calibrate_good(held, 1e-2)
    assert any("much alike" in text for text in caveats(held, tail, found))


def test_outlier_among_good_frames_is_told():
    scores = np.append(GOOD[:60], [400.0, 900.0, 2000.0])
    tail, found = calibrate_good(scores, 2e-2)
    assert any("far above the rest" in text for text in caveats(scores, tail, found))


def test_odds():
    assert [odds(p) for p in (1e-4, 0.1, 0.3)] == ["1 in 10,000", "1 in 10", "30 in 100"]


# --- the file


def test_calibration_survives_the_file(bundle, tmp_path):
    calibration = make_calibration(bundle)
    path = tmp_path / "calibration.json"
    path.write_text(calibration.model_dump_json(by_alias=True))
    assert load_calibration(path, bundle) == calibration
    assert json.loads(path.read_text())["lambda"] == bundle.manifest.lambda_


def test_calibration_from_before_scores_were_kept_is_read(bundle, tmp_path):
    fields = json.loads(make_calibration(bundle).model_dump_json(by_alias=True))
    del fields["good_scores"]
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(fields))
    assert load_calibration(path, bundle).good_scores is None


@pytest.mark.parametrize("scores", ["[NaN]", "[1e999]", '["many"]', json.dumps([1.0] * (MAX_KEPT_SCORES + 1))])
def test_good_scores_that_are_none_are_refused(bundle, tmp_path, scores):
    text = make_calibration(bundle, good_scores=(1.5,)).model_dump_json(by_alias=True)
    path = tmp_path / "calibration.json"
    path.write_text(text.replace("[1.5]", scores))
    with pytest.raises(CalibrationError, match=r"calibration.json: good_scores"):
        load_calibration(path, bundle)


@pytest.mark.parametrize("n", [1, 999, MAX_KEPT_SCORES, 1001, 123_456])
def test_good_scores_are_thinned_evenly_and_keep_their_order(n):
    kept = thinned(np.arange(n) * 1.0)
    assert len(kept) == min(n, MAX_KEPT_SCORES)
    assert kept[0] == 0
    assert kept[-1] == pytest.approx(n - 1, rel=1e-5)
    if n > 1:
        steps = np.diff(kept)
        assert steps.min() >= n // MAX_KEPT_SCORES
        assert steps.max() <= n // MAX_KEPT_SCORES + 2


def test_a_thousand_good_scores_leave_the_file_small(bundle):
    scores = thinned(np.random.default_rng(0).gumbel(1e5, 1e4, 5000))
    assert len(make_calibration(bundle, good_scores=scores).model_dump_json(by_alias=True)) < 2**14


def test_calibration_of_another_bundle_is_refused(bundle, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(make_calibration(bundle).model_dump_json(by_alias=True))
    other = make_bundle(tmp_path / "other", grey=90, name="other")
    with pytest.raises(CalibrationError, match=r"calibration.json: was made for bundle toy .* not for other"):
        load_calibration(path, other)


def test_calibration_of_another_frame_score_is_refused(bundle, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(make_calibration(bundle).model_dump_json(by_alias=True))
    assert load_calibration(path, bundle, JudgeSettings(top_k=7)).threshold  # k is not used by max
    with pytest.raises(CalibrationError, match="frame score max, the settings ask for mean_top_k with k = 3"):
        load_calibration(path, bundle, JudgeSettings(frame_score="mean_top_k"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ("[]", "calibration.json"),
        ('{"threshold": 1}', "Field required"),
        ("9" * 2**21, "larger than 1 MiB"),
    ],
)
def test_damaged_file_is_refused(bundle, tmp_path, text, message):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        load_calibration(path, bundle)


def test_missing_file_says_what_makes_it(bundle, tmp_path):
    with pytest.raises(CalibrationError, match="no such calibration; `station calibrate` writes it"):
        load_calibration(tmp_path / "calibration.json", bundle)


def test_folder_instead_of_file(bundle, tmp_path):
    with pytest.raises(CalibrationError, match="not a regular file"):
        load_calibration(tmp_path, bundle)
