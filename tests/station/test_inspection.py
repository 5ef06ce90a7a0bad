import numpy as np
import pytest

from engines.engine import EngineInfo, EngineSettings, PatchScores
from engines.errors import BackendError
from engines.geometry import Box
from engines.judging import Judging
from engines.opening import open_engine
from engines.tiling import Tiler
from station.inspection import Inspector
from station.settings import JudgeSettings
from tests.support.bundles import GREY, LAMBDA, make_bundle, toy_scores


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy", 32)


@pytest.fixture(scope="module")
def engine(bundle):
    engine = open_engine(bundle, EngineSettings(threads=1))
    yield engine
    engine.close()


def inspector(bundle, engine, roi=None, **judge):
    tiler = Tiler(bundle.manifest.preprocessing, roi)
    return Inspector(engine, tiler, Judging.of(bundle.manifest), JudgeSettings(**judge))


def test_scores_are_those_of_the_model_on_the_patches(bundle, engine):
    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    found = inspector(bundle, engine).inspect(image)
    tiler = Tiler(bundle.manifest.preprocessing)
    expected = toy_scores(tiler.patches(tiler.prepare(image)))
    score = (1 - LAMBDA) * expected.reconstruction_error + LAMBDA * expected.feature_error
    assert found.patch_scores == pytest.approx(score, rel=1e-4)
    assert found.score == pytest.approx(score.max(), rel=1e-4)
    assert found.heat == pytest.approx(found.grid.assemble(expected.residual), rel=1e-4)
    assert found.grid.frame_size == (70, 100)
    assert set(found.ms) == {"prepare", "infer", "judge"}
    assert min(found.ms.values()) >= 0


def test_a_bundle_with_an_anomaly_map_is_judged_by_the_map(tmp_path):
    bundle = make_bundle(tmp_path / "mapped", 32, smoothing=3.0)
    mapped = open_engine(bundle, EngineSettings(threads=1))
    image = np.full((64, 96, 3), GREY, np.uint8)
    image[28:36, 40:48] = 255  # on the seam between two rows of patches
    found = inspector(bundle, mapped).inspect(image)
    mapped.close()
    assert found.heat.shape == (64, 96)
    y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert (30 <= y <= 33, 42 <= x <= 45) == (True, True)
    assert found.score == found.patch_scores.max() == pytest.approx(found.heat.max())
    hot = np.flatnonzero(found.patch_scores > 0.9 * found.score)
    assert set(map(tuple, found.grid.origins[hot])) == {(0, 32), (32, 32)}


def test_defect_outside_the_region_of_interest_is_not_seen(bundle, engine):
    image = np.full((96, 128, 3), GREY, np.uint8)
    image[:20, :20] = 255
    assert inspector(bundle, engine).inspect(image).score > 100
    assert inspector(bundle, engine, Box(32, 32, 96, 64)).inspect(image).score == 0


def test_mean_top_k(bundle, engine):
    image = np.full((64, 64, 3), GREY, np.uint8)
    image[:32, :32] = 255
    highest = inspector(bundle, engine).inspect(image).score
    assert inspector(bundle, engine, frame_score="mean_top_k", top_k=4).inspect(image).score == highest / 4


def test_frame_smaller_than_a_patch_is_refused(bundle, engine):
    with pytest.raises(ValueError, match="less than one patch"):
        inspector(bundle, engine).inspect(np.zeros((20, 100, 3), np.uint8))


class BrokenEngine:
    """Test double: an engine whose arithmetic overflows."""

    info = EngineInfo("broken", "1", "none", "fp16")

    def score(self, patches):
        n, side = patches.shape[:2]
        scores = np.full(n, np.nan, np.float32)
        return PatchScores(scores, scores, np.zeros((n, side, side), np.float32))

    def close(self):
        pass


def test_nan_is_an_error_and_not_a_good_frame(bundle):
    with pytest.raises(BackendError, match="NaN or infinity for 4 of 4 patches"):
        inspector(bundle, BrokenEngine()).inspect(np.zeros((64, 64, 3), np.uint8))
