import numpy as np
import pytest

from engines.defects import KINDS
from engines.planted import plant_defect


def material(height: int, width: int) -> np.ndarray:
    grey = np.random.default_rng(0).normal(120, 15, (height, width, 1)).clip(0, 255).astype(np.uint8)
    return np.repeat(grey, 3, axis=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_is_as_large_to_the_model_at_every_scale(kind):
    def areas(scale: float) -> float:
        image = material(round(400 / scale), round(400 / scale))
        planted = [plant_defect(image, kind, np.random.default_rng(seed), scale) for seed in range(8)]
        assert all(frame is not None and frame.kind == kind for frame in planted)
        return float(np.mean([frame.mask.sum() * scale**2 for frame in planted]))

    small, whole, large = (areas(scale) for scale in (0.5, 1.0, 2.0))
    assert small == pytest.approx(whole, rel=0.25)
    assert large == pytest.approx(whole, rel=0.25)


def test_what_cannot_be_seen_is_not_planted():
    black = np.zeros((128, 128, 3), np.uint8)
    assert plant_defect(black, "stain", np.random.default_rng(0)) is None
    assert plant_defect(black, "scratch", np.random.default_rng(0)) is not None
