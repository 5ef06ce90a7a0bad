from dataclasses import replace

import numpy as np
import pytest

from engines.engine import EngineInfo, PatchScores
from engines.errors import SelfTestError
from engines.selftest import OUTPUTS, TOLERANCE, run_selftest
from tests.support.bundles import make_bundle, toy_scores


class NumpyEngine:
    """A test double: the toy detector by numpy, with a fault to be found."""

    def __init__(self, fault=lambda scores, patches: scores, precision="fp32"):
        self.info = EngineInfo(backend="numpy", backend_version="0", device="test", precision=precision)
        self.fault = fault
        self.sizes = []

    def score(self, patches):
        self.sizes.append(len(patches))
        exact = toy_scores(patches)
        scores = PatchScores(**{name: getattr(exact, name).astype(np.float32) for name in OUTPUTS})
        return self.fault(scores, patches)

    def close(self):
        pass


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("selftest") / "toy", 16)


def test_a_right_engine_passes(bundle):
    engine = NumpyEngine()
    report = run_selftest(engine, bundle)
    assert set(report.errors) == set(OUTPUTS)
    assert 0 < report.worst < 1e-6
    assert report.tolerance == TOLERANCE["fp32"][report.worst_output] == 1e-4
    assert engine.sizes == [16, 1, 15]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("factor", [1 + 2e-4, 1 - 2e-4, np.nan, np.inf, 0])
def test_each_output_counts(bundle, name, factor):
    def scaled(scores, patches):
        return replace(scores, **{name: (getattr(scores, name) * np.float32(factor)).astype(np.float32)})

    with pytest.raises(
        SelfTestError, match=rf"numpy 0 \(fp32, test\) gives a {name} that differs by .* must not serve"
    ):
        run_selftest(NumpyEngine(scaled), bundle)


def test_one_wrong_pixel_is_enough(bundle):
    def spot(scores, patches):
        scores.residual[-1, -1, -1] += 0.001
        return scores

    with pytest.raises(SelfTestError, match="residual"):
        run_selftest(NumpyEngine(spot), bundle)


def test_differences_within_the_tolerance_pass(bundle):
    def scaled(scores, patches):
        return replace(scores, residual=(scores.residual * np.float32(1 + 5e-5)).astype(np.float32))

    assert 4e-5 < run_selftest(NumpyEngine(scaled), bundle).worst < 6e-5


@pytest.mark.parametrize(
    ("precision", "name", "error", "passes"),
    [
        ("fp16", "reconstruction_error", 5e-3, True),
        ("fp16", "residual", 3e-2, False),
        ("int8", "reconstruction_error", 2e-2, True),
        ("int8", "feature_error", 6e-2, False),
        ("int8", "residual", 0.2, True),
        ("int8", "residual", 0.4, False),
    ],
)
def test_each_precision_has_its_tolerances(bundle, precision, name, error, passes):
    def scaled(scores, patches):
        return replace(scores, **{name: (getattr(scores, name) * np.float32(1 + error)).astype(np.float32)})

    engine = NumpyEngine(scaled, precision)
    if passes:
        report = run_selftest(engine, bundle)
        assert report.worst_output == name
        assert report.worst == pytest.approx(error, rel=1e-3)
        assert report.tolerance == TOLERANCE[precision][name]
    else:
        with pytest.raises(SelfTestError, match=rf"{precision}, test\) gives a {name}"):
            run_selftest(engine, bundle)


def test_results_left_over_from_the_run_before_are_noticed(bundle):
    kept = []

    def stale(scores, patches):
        kept.append(scores)
        first = kept[0]
        return PatchScores(**{name: getattr(first, name)[: len(patches)] for name in OUTPUTS})

    with pytest.raises(SelfTestError):
        run_selftest(NumpyEngine(stale), bundle)


def test_a_single_patch_counts(bundle):
    def wrong_when_alone(scores, patches):
        if len(patches) == 1:
            scores.feature_error[:] = 0
        return scores

    with pytest.raises(SelfTestError, match="feature_error"):
        run_selftest(NumpyEngine(wrong_when_alone), bundle)


def test_outputs_of_the_wrong_shape_are_noticed(bundle):
    def squeezed(scores, patches):
        return replace(scores, residual=scores.residual[:, :, 0])

    with pytest.raises(SelfTestError, match="residual"):
        run_selftest(NumpyEngine(squeezed), bundle)


def test_mixed_up_axes_are_noticed(bundle):
    engine, transposed = NumpyEngine(), NumpyEngine()
    transposed.score = lambda patches: engine.score(np.swapaxes(patches, 1, 2))
    with pytest.raises(SelfTestError):
        run_selftest(transposed, bundle)


def test_an_output_that_must_be_zero_must_be_zero(bundle):
    expected = replace(bundle.selftest.expected, feature_error=np.zeros(16))
    zero_bundle = replace(bundle, selftest=replace(bundle.selftest, expected=expected))

    def zero(scores, patches):
        return replace(scores, feature_error=np.zeros(len(patches), np.float32))

    assert run_selftest(NumpyEngine(zero), zero_bundle).errors["feature_error"] == 0
    with pytest.raises(SelfTestError, match="feature_error"):
        run_selftest(NumpyEngine(), zero_bundle)
