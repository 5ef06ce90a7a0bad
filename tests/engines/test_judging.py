import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from engines.bundle import read_bundle
from engines.engine import EngineSettings, PatchScores
from engines.errors import SelfTestError
from engines.judging import Judging, smoothed, standardised
from engines.manifest import Standards
from engines.opening import open_engine
from engines.selftest import run_selftest
from engines.tiling import Tiler
from tests.support.bundles import make_bundle

P = 32


def scores_of(grid, frame_map):
    """Scores whose maps, put together, are ``frame_map``."""
    cut = np.stack([frame_map[y : y + P, x : x + P] for y, x in grid.origins]).astype(np.float32)
    sums = cut.sum(axis=(1, 2))
    return PatchScores(reconstruction_error=sums, feature_error=2 * sums, residual=cut / 2, anomaly_map=cut)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return read_bundle(make_bundle(tmp_path_factory.mktemp("judging") / "toy", P, stride=24, smoothing=6.0).path)


@pytest.fixture(scope="module")
def grid(bundle):
    return Tiler(bundle.manifest.preprocessing).grid((90, 140))


def test_without_a_map_a_frame_is_judged_by_eq_7(grid):
    frame = np.random.default_rng(0).random((90, 140), np.float32)
    scores = scores_of(grid, frame)
    judged = Judging(0.25)(scores, grid)
    np.testing.assert_array_equal(judged.patch_scores, scores.anomaly_score(0.25))
    np.testing.assert_allclose(judged.heat, frame / 2, rtol=1e-6)


def test_a_patch_scores_the_peak_of_the_smoothed_map_in_it(grid):
    frame = np.zeros((90, 140), np.float32)
    frame[40:44, 100:120] = 5
    judged = Judging(0.1, 6.0)(scores_of(grid, frame), grid)
    np.testing.assert_allclose(judged.heat, smoothed(frame, 6.0), atol=1e-5)
    assert judged.patch_scores.max() == judged.heat.max()
    hottest = grid.origins[judged.patch_scores.argmax()]
    assert hottest[0] <= 44 <= hottest[0] + P
    assert hottest[1] <= 120 <= hottest[1] + P
    assert judged.patch_scores.dtype == judged.heat.dtype == np.float32


def test_a_defect_on_a_seam_counts_whole(grid):
    """Its smoothed peak is the same wherever the seams of the patches lie."""
    peaks = []
    for left in range(40, 60, 4):
        frame = np.zeros((90, 140), np.float32)
        frame[40:48, left : left + 8] = 1
        peaks.append(float(Judging(0.1, 6.0)(scores_of(grid, frame), grid).patch_scores.max()))
    assert max(peaks) < 1.05 * min(peaks)


@pytest.mark.parametrize("sigma", [1.0, 4.0, 6.0, 12.0])
def test_smoothing_is_a_gaussian(sigma):
    image = np.random.default_rng(1).random((173, 231), np.float32)
    exact = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    inner = (slice(30, -30), slice(30, -30))
    assert np.abs(smoothed(image, sigma) - exact)[inner].max() < 0.4 * exact[inner].std() + 1e-6
    assert smoothed(image, sigma).shape == image.shape


def test_the_engine_returns_the_map_and_the_self_test_counts_it(bundle):
    engine = open_engine(bundle, EngineSettings(backend="onnxruntime"))
    scores = engine.score(bundle.selftest.patches)
    np.testing.assert_array_equal(scores.anomaly_map, scores.residual)
    assert set(run_selftest(engine, bundle).errors) == {t.name for t in bundle.manifest.outputs}

    class Forgetful:
        """A test double: an engine that returns no map."""

        info = engine.info

        def score(self, patches):
            found = engine.score(patches)
            return PatchScores(found.reconstruction_error, found.feature_error, found.residual)

        def close(self):
            pass

    with pytest.raises(SelfTestError, match="gives a anomaly_map"):
        run_selftest(Forgetful(), bundle)
    engine.close()


def standards(mean, deviation):
    return Standards(mean=mean, deviation=deviation, n_frames=9)


def test_what_a_place_is_used_to_is_no_defect(grid):
    """A frame whose left half always differs: only what is more than that stands out."""
    usual = np.zeros((90, 140), np.float32)
    usual[:, :60] = 7
    strange = usual.copy()
    strange[40:50, 100:110] += 3
    used_to = standards([[7.0, 0.0]], [[2.0, 0.5]])
    assert Judging(0.1, 1.0)(scores_of(grid, strange), grid).heat.argmax() % 140 < 60
    judged = Judging(0.1, 1.0, used_to)(scores_of(grid, strange), grid)
    y, x = np.unravel_index(judged.heat.argmax(), judged.heat.shape)
    assert 40 <= y < 50
    assert 100 <= x < 110
    np.testing.assert_allclose(judged.heat[:, :30], 0, atol=1e-4)
    assert judged.heat.dtype == np.float32
    assert judged.heat.max() == pytest.approx(6, rel=0.02)


def test_standards_fit_any_size_of_frame():
    used_to = standards([[1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]])
    for size in ((7, 5), (90, 140), (481, 333)):
        np.testing.assert_allclose(standardised(np.full(size, 3, np.float32), used_to), np.ones(size, np.float32))


def test_standards_are_told_apart_and_written_out_they_are_the_same():
    """Frames of several sizes and standards in turn, as they are kept between frames."""
    rng = np.random.default_rng(0)
    several = [
        Standards(mean=rng.random((4, 6)).tolist(), deviation=(rng.random((4, 6)) + 0.5).tolist(), n_frames=9,
                  medians=medians)
        for medians in (None, (-9.0, 9.0), (0.1, 0.2))
    ]  # fmt: skip
    for size in ((90, 140), (64, 64), (90, 140), (481, 333)):
        heat = rng.random(size, np.float32)
        before = heat.copy()
        for used_to in several:
            mean, deviation = (
                cv2.resize(np.array(rows, np.float32), size[::-1]) for rows in (used_to.mean, used_to.deviation)
            )
            expected = (heat - mean) / deviation
            if used_to.medians is not None:
                expected = expected - np.float32(np.clip(np.median(expected[::4, ::4]), *used_to.medians))
            np.testing.assert_array_equal(standardised(heat, used_to), expected)
            assert standardised(heat, used_to).dtype == np.float32
        np.testing.assert_array_equal(heat, before)


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [
        ([[1.0, 2.0]], [[1.0]]),
        ([[1.0], [1.0, 2.0]], [[1.0], [1.0, 2.0]]),
        ([[1.0]], [[0.0]]),
        ([[1.0]], [[float("nan")]]),
        ([[float("inf")]], [[1.0]]),
        ([], []),
        ([[]], [[]]),
        ([[1.0] * 65], [[1.0] * 65]),
    ],
    ids=["sizes", "ragged", "zero", "nan", "infinite", "none", "empty", "large"],
)
def test_standards_that_make_no_sense_are_refused(mean, deviation):
    with pytest.raises(ValidationError):
        standards(mean, deviation)
