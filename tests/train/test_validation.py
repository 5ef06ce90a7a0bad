import cv2
import numpy as np
import pytest

from engines.planted import CONTRASTS
from train.validation import RECIPES, plant_frames, validate

KINDS = [*RECIPES, *CONTRASTS]


def frames(n: int, size: tuple[int, int] = (128, 160), colour: bool = False, seed: int = 0) -> list[np.ndarray]:
    """Even, finely textured material."""
    rng = np.random.default_rng(seed)
    made = [cv2.GaussianBlur(rng.normal(120, 40, (*size, 3 if colour else 1)), (0, 0), 1) for _ in range(n)]
    return [np.dstack([frame] if colour else [frame] * 3).clip(0, 255).astype(np.uint8) for frame in made]


def departure(image: np.ndarray) -> tuple[float, np.ndarray]:
    """A plain scorer: smoothed distance from the frame's mean."""
    heat = np.abs(cv2.GaussianBlur(image.mean(axis=2).astype(np.float32) - image.mean(), (0, 0), 3))
    return float(heat.max()), heat


@pytest.mark.parametrize("size", [(128, 160), (256, 70)])
@pytest.mark.parametrize("colour", [False, True])
def test_one_defect_where_the_mask_says_and_nothing_elsewhere(size, colour):
    images = frames(7, size, colour)
    planted = list(plant_frames(images, 0, per_image=3))
    assert len(planted) == 21
    for i, frame in enumerate(planted):
        original = images[i // 3]
        assert frame.image.dtype == np.uint8
        assert frame.image.shape == original.shape
        assert frame.mask.dtype == bool
        assert frame.mask.shape == size
        change = cv2.absdiff(frame.image, original).max(axis=2)
        assert change[frame.mask].mean() >= (1 if frame.kind in RECIPES else 5)
        # Soft edges reach beyond the mask.
        rows, columns = np.nonzero(frame.mask)
        around = np.zeros(size, bool)
        around[max(rows.min() - 20, 0) : rows.max() + 20, max(columns.min() - 20, 0) : columns.max() + 20] = True
        assert not change[~around].any()
        assert change[~frame.mask].mean() < 0.1 * change[frame.mask].mean()


def test_kinds_come_equally_often_and_the_seed_decides_everything():
    images = frames(7)
    first, again, other = (list(plant_frames(images, seed, per_image=2)) for seed in (1, 1, 2))
    assert sorted(frame.kind for frame in first) == sorted(KINDS * 2)
    assert all(np.array_equal(a.image, b.image) and a.kind == b.kind for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(first, other, strict=True))


def test_strength_follows_the_contrast_of_the_frame():
    calm = [cv2.addWeighted(image, 0.25, np.full_like(image, 120), 0.75, 0) for image in frames(28)]

    def strengths(images):
        return {
            kind: np.mean([
                cv2.absdiff(frame.image, images[i])[frame.mask].mean()
                for i, frame in enumerate(plant_frames(images, 0))
                if frame.kind == kind
            ])
            for kind in KINDS
        }  # fmt: skip

    lively, calm_strengths = strengths(frames(28)), strengths(calm)
    for kind in KINDS:
        assert 2 < lively[kind] / calm_strengths[kind] < 6, kind
    for frame in plant_frames(calm, 0):
        if frame.kind in RECIPES:
            assert frame.contrast == RECIPES[frame.kind]
        else:
            assert 0 < frame.contrast <= CONTRASTS[frame.kind][1]


def test_grey_frames_stay_grey():
    assert all(np.ptp(frame.image, axis=2).max() == 0 for frame in plant_frames(frames(14), 0))


def test_frames_of_one_patch_and_black_ones():
    small = list(plant_frames(frames(7, (64, 64)), 0))
    assert sorted(frame.kind for frame in small) == sorted(KINDS)
    assert all(frame.mask.any() for frame in small)
    for frame in plant_frames([np.zeros((128, 128, 3), np.uint8)] * 14, 0):
        assert frame.image[frame.mask].any()


def test_validation_of_a_plain_a_blind_and_a_perfect_scorer():
    images = frames(14)
    plain = validate(departure, images[:7], images[7:], per_image=3)
    assert (plain.n_good, plain.n_planted) == (7, 21)
    assert 0.6 < plain.image_auroc <= 1
    assert 0.6 < plain.pixel_auroc <= 1
    assert list(plain.kinds) == KINDS
    assert sum(kind.n for kind in plain.kinds.values()) == 21
    assert sum(kind.n * kind.caught for kind in plain.kinds.values()) == pytest.approx(21 * plain.caught)
    assert sum(kind.n * kind.image_auroc for kind in plain.kinds.values()) == pytest.approx(21 * plain.image_auroc)

    blind = validate(lambda image: (0.0, np.zeros(image.shape[:2], np.float32)), images, images)
    assert (blind.image_auroc, blind.pixel_auroc, blind.caught) == (0.5, 0.5, 0.0)

    def knows(image):
        """Tells planted frames by the original, which no real scorer has."""
        nearest = min((cv2.absdiff(image, original).max(axis=2) for original in images), key=np.count_nonzero)
        return float(nearest.max()), nearest.astype(np.float32)

    perfect = validate(knows, images, images)
    assert (perfect.image_auroc, perfect.caught) == (1.0, 1.0)
    assert perfect.pixel_auroc > 0.95


def test_a_validation_repeats():
    images = frames(8)
    assert validate(departure, images, images, 3) == validate(departure, images, images, 3)
    assert validate(departure, images, images, 3) != validate(departure, images, images, 4)


def test_nothing_to_measure_and_broken_scorers_are_errors():
    images = frames(4)
    with pytest.raises(ValueError, match="0 good"):
        validate(departure, [], images)
    with pytest.raises(ValueError, match="0 anomalous"):
        validate(departure, images, [])
    with pytest.raises(ValueError, match="NaN"):
        validate(lambda image: (float("nan"), departure(image)[1]), images, images)
