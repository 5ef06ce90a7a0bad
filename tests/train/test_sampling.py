"""Patches come from inside the images, rotated and mirrored as asked."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.sampling import PatchSampler


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose red is its row and green its column, so that a patch tells where it came from."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(y)], axis=2).astype(np.uint8)


def pixels(patches: torch.Tensor) -> np.ndarray:
    """(n, 3, P, P) in [-1, 1] -> (n, P, P, 3) in 0..255."""
    return ((patches + 1) * 127.5).permute(0, 2, 3, 1).numpy()


def test_plain_patches_are_the_images_pixels():
    image = np.random.default_rng(0).integers(0, 256, (90, 110, 3), dtype=np.uint8)
    patches = pixels(PatchSampler([image], 64).sample(20, generator()))
    windows = np.lib.stride_tricks.sliding_window_view(image, (64, 64), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    for patch in np.rint(patches).astype(np.uint8):
        assert (windows == patch).all(axis=(2, 3, 4)).any()


@given(
    sizes=st.lists(st.tuples(st.integers(16, 90), st.integers(16, 90)), min_size=1, max_size=4),
    low=st.integers(-360, 360),
    spread=st.integers(0, 360),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_value_comes_from_the_patchs_own_image(sizes, low, spread, flip, seed):
    """Images of constant, distinct grey: a pixel from outside, or of a neighbour in the buffer, would show."""
    images = [np.full((h, w, 1), 40 * (i + 1), np.uint8) for i, (h, w) in enumerate(sizes)]
    sampler = PatchSampler(images, 16, rotate=(float(low), float(low + spread)), flip=flip)
    for patch in pixels(sampler.sample(6, generator(seed))):
        assert np.ptp(patch) < 1e-3
        assert np.rint(patch[0, 0, 0]) in {40 * (i + 1) for i in range(len(images))}


def test_all_positions_are_reached():
    sampler = PatchSampler([coordinates(70, 68)], 64)
    patches = np.rint(pixels(sampler.sample(600, generator())))
    corners = {(int(p[0, 0, 0]), int(p[0, 0, 1])) for p in patches}
    assert corners == {(y, x) for y in range(7) for x in range(5)}


@pytest.mark.parametrize("degrees", [0.001, 30.0, 90.0, -45.0])
def test_rotation_is_counter_clockwise_by_the_angle_asked(degrees):
    """Along a patch's row, the source moves in the direction that the rotation says."""
    patch = pixels(PatchSampler([coordinates(200, 200)], 64, rotate=(degrees, degrees)).sample(1, generator()))[0]
    along_row = patch[32, 40, :2] - patch[32, 24, :2]  # (rows, columns) for 16 pixels to the right in the patch
    angle = np.deg2rad(degrees)
    # Content turned counter-clockwise by the angle: the patch's horizontal axis is the image's, turned clockwise.
    assert along_row == pytest.approx([-16 * np.sin(-angle), 16 * np.cos(angle)], abs=0.05)


def test_rotated_patches_stay_inside_where_they_can():
    """No repeated border: the square's corners, too, show a slope of one pixel a pixel."""
    patches = pixels(PatchSampler([coordinates(100, 100)], 64, rotate=(-180, 180)).sample(200, generator()))[..., :2]
    steps = np.linalg.norm(np.diff(patches, axis=2), axis=3)
    assert steps.min() == pytest.approx(1.0, abs=0.02)
    assert steps.max() == pytest.approx(1.0, abs=0.02)


def test_flips_happen_both_ways():
    patches = pixels(PatchSampler([coordinates(80, 80)], 64, flip=True).sample(64, generator()))
    down = patches[:, -1, 0, 0] > patches[:, 0, 0, 0]
    right = patches[:, 0, -1, 1] > patches[:, 0, 0, 1]
    assert {(bool(d), bool(r)) for d, r in zip(down, right, strict=True)} == {(a, b) for a in (0, 1) for b in (0, 1)}


def test_same_generator_same_patches_and_grey_is_repeated():
    image = np.random.default_rng(1).integers(0, 256, (80, 80, 1), dtype=np.uint8)
    sampler = PatchSampler([image], 64, rotate=(-10, 10), flip=True)
    a, b = sampler.sample(4, generator(5)), sampler.sample(4, generator(5))
    assert torch.equal(a, b)
    assert a.shape == (4, 3, 64, 64)
    assert torch.equal(a[:, 0], a[:, 2])
    assert a.is_contiguous(memory_format=torch.channels_last)
