import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from engines.bundle import pack_calibration, write_bundle
from engines.engine import EngineInfo, PatchScores
from engines.gate import judge_plan, rank_correlation
from tests.support.bundles import make_bundle, make_description, make_selftest, toy_scorer, toy_scores

PATCH = 16
RNG = np.random.default_rng(0)


class EngineDouble:
    """An engine that computes the toy rightly but for an error, as a share of each score."""

    def __init__(self, precision, error=0.0):
        self.info = EngineInfo("double", "1", "none", precision)
        self._error = error

    def score(self, patches):
        scores = toy_scores(patches)
        noise = 1 + self._error * np.random.default_rng(len(patches)).uniform(-1, 1, len(patches))
        return PatchScores(
            (scores.reconstruction_error * noise).astype(np.float32),
            (scores.feature_error * noise).astype(np.float32),
            scores.residual.astype(np.float32),
        )

    def close(self):
        pass


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("gate") / "plain", PATCH)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A bundle with calibration patches of nearly equal scores, which an error of a per cent puts in disorder."""
    selftest = make_selftest(PATCH)
    patches = np.clip(RNG.normal(100, 20, (64, PATCH, PATCH, 3)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("gate") / "calibrated"
    example = make_bundle(path.with_name("example"), PATCH)
    return write_bundle(
        path,
        make_description(example.manifest.preprocessing),
        toy_scorer(PATCH).SerializeToString(),
        selftest,
        "# Toy",
        {"calibration.npz": pack_calibration(patches)},
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_exact_engine_passes(calibrated, precision):
    verdict = judge_plan(EngineDouble(precision), calibrated, precision)
    assert verdict.accepted
    assert verdict.selftest_error < 1e-5
    assert verdict.rank_correlation > 0.9999
    assert "ranks 64 calibration patches like fp32" in verdict.words


@pytest.mark.parametrize(("precision", "error", "accepted"), [("fp16", 0.01, False), ("int8", 0.001, True)])
def test_ranks_decide_where_the_self_test_lets_pass(calibrated, precision, error, accepted):
    verdict = judge_plan(EngineDouble(precision, error), calibrated, precision)
    assert verdict.accepted is accepted
    assert 0 < verdict.selftest_error <= 0.02
    if not accepted:
        assert verdict.rank_correlation < 0.999
        assert "unlike fp32" in verdict.words
        assert "at least 0.999 is needed" in verdict.words


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-3), ("fp16", 0.1), ("int8", 0.9)])
def test_who_fails_the_self_test_is_not_ranked(calibrated, precision, error):
    verdict = judge_plan(EngineDouble(precision, error), calibrated, precision)
    assert not verdict.accepted
    assert verdict.rank_correlation is None
    assert "self-test failed" in verdict.words


def test_without_calibration_patches_the_self_tests_are_ranked(plain):
    verdict = judge_plan(EngineDouble("fp16"), plain, "fp16")
    assert verdict.accepted
    assert "ranks 16 self-test patches like fp32" in verdict.words


@given(
    hnp.arrays(np.float32, st.integers(3, 30), elements=st.integers(-5, 5).map(float)),
    st.integers(0, 2**32 - 1),
)
def test_rank_correlation_is_scipys(values, seed):
    other = np.random.default_rng(seed).permutation(values)
    if len(np.unique(values)) == 1:
        assert rank_correlation(values, other) == 1.0
    else:
        assert rank_correlation(values, other) == pytest.approx(spearmanr(values, other).statistic, abs=1e-12)


def test_rank_correlation_at_its_ends():
    rising = np.arange(10, dtype=np.float32)
    assert rank_correlation(rising, np.exp(rising)) == pytest.approx(1)
    assert rank_correlation(rising, -rising) == pytest.approx(-1)
    assert rank_correlation(rising, np.zeros(10, np.float32)) == 0
    assert rank_correlation(np.zeros(10, np.float32), rising) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_ranks_like_nothing(bad):
    values = np.arange(4, dtype=np.float32)
    broken = values.copy()
    broken[1] = bad
    assert rank_correlation(values, broken) == 0
    assert rank_correlation(broken, broken) == 0
