import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engines.geometry import Box
from engines.manifest import Preprocessing
from engines.tiling import Tiler

RNG = np.random.default_rng(0)


@st.composite
def layouts(draw):
    """A tiler and a frame size for which it has a grid."""
    patch = draw(st.integers(16, 40))
    stride = draw(st.one_of(st.just(patch), st.integers(6, patch)))
    height, width = draw(st.integers(16, 100)), draw(st.integers(16, 100))
    roi = None
    if draw(st.booleans()):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        roi = Box(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
    if draw(st.booleans()):
        size = draw(st.tuples(st.integers(patch, 120), st.integers(patch, 120)))
        pre = Preprocessing(colour="rgb", frame_size=size, patch_size=patch, stride=stride)
    else:
        scale = draw(st.floats(0.2, 2.0))
        h, w = (roi.h, roi.w) if roi else (height, width)
        assume(min(round(h * scale), round(w * scale)) >= patch)
        pre = Preprocessing(colour="rgb", scale=scale, patch_size=patch, stride=stride)
    return Tiler(pre, roi), (height, width)


@given(layouts())
def test_every_pixel_is_in_a_patch(layout):
    tiler, frame_size = layout
    grid = tiler.grid(frame_size)
    seen = np.zeros(grid.prepared_size, int)
    for y, x in grid.origins:
        assert 0 <= y <= grid.prepared_size[0] - grid.patch
        assert 0 <= x <= grid.prepared_size[1] - grid.patch
        seen[y : y + grid.patch, x : x + grid.patch] += 1
    assert seen.min() >= 1
    assert len(grid.origins) == grid.n
    assert len({tuple(origin) for origin in grid.origins.tolist()}) == grid.n  # none twice
    assert grid.origins.tolist() == sorted(grid.origins.tolist())  # row-major


@given(layouts())
def test_boxes_lie_in_the_inspected_part_and_cover_it(layout):
    tiler, (height, width) = layout
    grid = tiler.grid((height, width))
    roi = tiler.roi or Box(0, 0, width, height)
    covered = np.zeros((height, width), bool)
    for index in range(grid.n):
        box = grid.box(index)
        assert roi.x <= box.x < box.right <= roi.right
        assert roi.y <= box.y < box.bottom <= roi.bottom
        covered[box.y : box.bottom, box.x : box.right] = True
    inside = np.zeros((height, width), bool)
    inside[roi.y : roi.bottom, roi.x : roi.right] = True
    np.testing.assert_array_equal(covered, inside)


@given(layouts())
def test_boxes_hold_what_the_patch_saw(layout):
    tiler, frame_size = layout
    grid = tiler.grid(frame_size)
    scale = np.array([grid.roi.h / grid.prepared_size[0], grid.roi.w / grid.prepared_size[1]])
    assert grid.scale == pytest.approx(1 / np.sqrt(scale.prod()))
    for index, origin in enumerate(grid.origins):
        box = grid.box(index)
        start = np.array([grid.roi.y, grid.roi.x]) + origin * scale
        end = start + grid.patch * scale
        # Holds it all, and is no more than the rounding to whole pixels larger.
        assert np.all(np.array([box.y, box.x]) <= start + 1e-6)
        assert np.all(np.array([box.y, box.x]) > start - 1)
        assert np.all(np.array([box.bottom, box.right]) >= end - 1e-6)
        assert np.all(np.array([box.bottom, box.right]) < end + 1)


@given(layouts(), st.integers(0, 2**32 - 1))
def test_patches_are_cut_where_the_grid_says(layout, seed):
    tiler, frame_size = layout
    grid = tiler.grid(frame_size)
    prepared = np.random.default_rng(seed).integers(0, 256, (*grid.prepared_size, 3), dtype=np.uint8)
    patches = tiler.patches(prepared)
    P = grid.patch
    assert patches.shape == (grid.n, P, P, 3)
    assert patches.flags.c_contiguous
    for patch, (y, x) in zip(patches, grid.origins, strict=True):
        np.testing.assert_array_equal(patch, prepared[y : y + P, x : x + P])


@given(layouts(), st.integers(0, 2**32 - 1))
def test_assemble_is_the_mean_of_what_overlaps(layout, seed):
    tiler, frame_size = layout
    grid = tiler.grid(frame_size)
    P = grid.patch
    residual = np.random.default_rng(seed).random((grid.n, P, P), np.float32)
    total, count = np.zeros(grid.prepared_size), np.zeros(grid.prepared_size)
    for patch_map, (y, x) in zip(residual, grid.origins, strict=True):
        total[y : y + P, x : x + P] += patch_map
        count[y : y + P, x : x + P] += 1
    assembled = grid.assemble(residual)
    assert assembled.dtype == np.float32
    np.testing.assert_allclose(assembled, total / count, atol=1e-5)


@given(layouts(), st.integers(0, 2**32 - 1))
def test_peaks_are_the_highest_values_of_the_patches(layout, seed):
    tiler, frame_size = layout
    grid = tiler.grid(frame_size)
    P = grid.patch
    heat = np.random.default_rng(seed).normal(size=grid.prepared_size).astype(np.float32)
    peaks = grid.peaks(heat)
    assert peaks.dtype == np.float32
    np.testing.assert_array_equal(peaks, [heat[y : y + P, x : x + P].max() for y, x in grid.origins])


@given(layouts())
def test_a_map_comes_back_to_its_place_in_the_frame(layout):
    tiler, (height, width) = layout
    grid = tiler.grid((height, width))
    frame_map = grid.to_frame(np.full(grid.prepared_size, 0.5, np.float32))
    x, y, w, h = grid.roi
    expected = np.zeros((height, width), np.float32)
    expected[y : y + h, x : x + w] = 0.5
    assert frame_map.dtype == np.float32
    np.testing.assert_allclose(frame_map, expected, atol=1e-6)


@given(layouts(), st.integers(0, 2**32 - 1))
def test_what_is_planted_in_the_frame_is_found_in_the_patch_whose_box_holds_it(layout, seed):
    tiler, (height, width) = layout
    rng = np.random.default_rng(seed)
    grid = tiler.grid((height, width))
    image = np.zeros((height, width, 3), np.uint8)
    y, x = grid.roi.y + rng.integers(grid.roi.h), grid.roi.x + rng.integers(grid.roi.w)
    image[y, x] = 255
    prepared = tiler.prepare(image)
    # Strongly enlarged or reduced, linear interpolation of a single pixel may vanish; then there is nothing to find.
    assume(prepared.any())
    brightest = [int(patch.max()) for patch in tiler.patches(prepared)]
    box = grid.box(int(np.argmax(brightest))).grown(1)
    assert box.intersects(Box(x, y, 1, 1))


def test_prepare_turns_bgr_into_rgb():
    image = RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8)
    tiler = Tiler(Preprocessing(colour="rgb", patch_size=16, stride=16))
    np.testing.assert_array_equal(tiler.prepare(image), image[:, :, ::-1])


def test_prepare_for_a_gray_model_repeats_the_luminance():
    image = RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8)
    prepared = Tiler(Preprocessing(colour="gray", patch_size=16, stride=16)).prepare(image)
    luminance = image @ np.array([0.114, 0.587, 0.299])
    assert prepared.shape == (32, 40, 3)
    assert np.ptp(prepared, axis=2).max() == 0
    np.testing.assert_allclose(prepared[:, :, 0], luminance, atol=1)


def test_shrinking_takes_area_means():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # aliases to black or white if pixels are picked
    prepared = Tiler(Preprocessing(colour="rgb", scale=0.5, patch_size=16, stride=16)).prepare(stripes)
    assert prepared.shape == (32, 32, 3)
    assert set(np.unique(prepared)) <= {127, 128}


def test_enlarging_is_linear():
    image = RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8)
    prepared = Tiler(Preprocessing(colour="rgb", scale=2, patch_size=16, stride=16)).prepare(image)
    expected = cv2.resize(image, (80, 64), interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
    np.testing.assert_array_equal(prepared, expected)


def test_roi_is_cropped_before_resizing():
    image = RNG.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    pre = Preprocessing(colour="rgb", patch_size=16, stride=16)
    np.testing.assert_array_equal(
        Tiler(pre, Box(5, 7, 30, 20)).prepare(image), Tiler(pre).prepare(image[7:27, 5:35].copy())
    )


def test_an_object_is_one_patch():
    tiler = Tiler(Preprocessing(colour="rgb", frame_size=(64, 64), patch_size=64, stride=64))
    grid = tiler.grid((300, 200))
    assert grid.n == 1
    assert grid.box(0) == Box(0, 0, 200, 300)


def test_stride_1_looks_everywhere():
    prepared = RNG.integers(0, 256, (18, 19, 3), dtype=np.uint8)
    patches = Tiler(Preprocessing(colour="rgb", patch_size=16, stride=1)).patches(prepared)
    assert len(patches) == 3 * 4
    np.testing.assert_array_equal(patches[-1], prepared[2:, 3:])


def test_the_grid_is_kept_until_the_frame_size_changes():
    tiler = Tiler(Preprocessing(colour="rgb", patch_size=16, stride=16))
    first = tiler.grid((32, 32))
    assert tiler.grid((32, 32)) is first
    assert tiler.grid((48, 32)).frame_size == (48, 32)


@pytest.mark.parametrize(
    ("roi", "frame_size", "message"),
    [
        (None, (15, 100), r"100 x 15 frame pixels give 100 x 15 at scale 1.*use a larger frame"),
        (Box(0, 0, 100, 10), (100, 100), r"less than one patch of 16 x 16"),
        (Box(90, 0, 20, 50), (100, 100), r"reaches outside the 100 x 100 frame; correct it"),
    ],
)
def test_layouts_that_cannot_be_are_explained(roi, frame_size, message):
    tiler = Tiler(Preprocessing(colour="rgb", patch_size=16, stride=16), roi)
    with pytest.raises(ValueError, match=message):
        tiler.grid(frame_size)


@pytest.mark.parametrize("roi", [Box(-1, 0, 10, 10), Box(0, 0, 0, 10)])
def test_a_roi_outside_any_frame_is_refused_at_once(roi):
    with pytest.raises(ValueError, match="region of interest"):
        Tiler(Preprocessing(colour="rgb", patch_size=16, stride=16), roi)


@pytest.mark.parametrize("image", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32)])
def test_frames_of_another_kind_are_refused(image):
    with pytest.raises(ValueError, match="a frame is uint8"):
        Tiler(Preprocessing(colour="rgb", patch_size=16, stride=16)).prepare(image)


def test_maps_of_the_wrong_shape_are_refused():
    grid = Tiler(Preprocessing(colour="rgb", patch_size=16, stride=16)).grid((32, 32))
    with pytest.raises(ValueError, match="the grid needs"):
        grid.assemble(np.zeros((3, 16, 16), np.float32))
    with pytest.raises(ValueError, match="the grid needs"):
        grid.to_frame(np.zeros((16, 32), np.float32))
    with pytest.raises(ValueError, match="the grid needs"):
        grid.peaks(np.zeros((16, 32), np.float32))
