import re
from urllib.parse import urlencode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.defects import KINDS
from station.camera import CameraError
from station.demo.sample_line import GAIN, HEIGHT, SLOPE, STEP, WIDTH, SampleLine, open_sample_line


@pytest.fixture(scope="module")
def line():
    return SampleLine(seed=0, n_frames=300)


def test_the_same_seed_gives_the_same_line_and_another_seed_another(line):
    same, other = SampleLine(0, 300), SampleLine(1, 300)
    np.testing.assert_array_equal(line.frame(17), same.frame(17))
    assert [p.kind for p in line.planted] == [p.kind for p in same.planted]
    assert not np.array_equal(line.frame(17), other.frame(17))
    assert [(p.x, p.y) for p in line.planted] != [(p.x, p.y) for p in other.planted]


def test_frames_are_grey_pictures_of_a_colour_camera(line):
    frame = line.frame(0)
    assert frame.shape == (HEIGHT, WIDTH, 3)
    assert frame.dtype == np.uint8
    assert (frame[..., 0] == frame[..., 1]).all()
    assert (frame[..., 0] == frame[..., 2]).all()


def test_the_web_moves_by_one_step_a_frame():
    line = SampleLine(3, 40, defects=False)
    for i in range(0, 39, 13):
        np.testing.assert_array_equal(line.surface(i + 1)[STEP:], line.surface(i)[:-STEP])


@given(seed=st.integers(0, 10**6), n_frames=st.integers(20, 400))
@settings(max_examples=25, deadline=None)
def test_defects_are_planted_apart_on_the_web_and_pass_the_camera(seed, n_frames):
    line = SampleLine(seed, n_frames)
    last = -1
    for planted in line.planted:
        frames = planted.frames(n_frames)
        assert frames.start > last  # the one before has left when this one comes: never two at once
        assert len(frames) >= 5
        last = frames[-1]
        for i in range(n_frames):
            box = planted.box(i)
            assert (box is not None) == (i in frames)
            if box is not None:
                assert box.x >= 0
                assert box.y >= 0
                assert box.right <= WIDTH
                assert box.bottom <= HEIGHT
    n_defective = sum(len(p.frames(n_frames)) for p in line.planted)
    assert n_defective < 0.8 * n_frames


def test_every_kind_is_planted_about_equally_often(line):
    counts = [sum(p.kind == kind for p in line.planted) for kind in KINDS]
    assert min(counts) >= 2
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_the_ground_truth_is_where_the_line_differs_from_a_good_one(seed):
    line, good = SampleLine(seed, 120), SampleLine(seed, 120, defects=False)
    assert len(line.planted) > 3
    for i in range(0, 120, 3):
        change = np.abs(line.surface(i) - good.surface(i))
        boxed = np.zeros_like(change, bool)
        for planted in line.planted:
            if (box := planted.box(i)) is not None:
                boxed[box.y : box.bottom, box.x : box.right] = True
        assert (change[~boxed] == 0).all()
        assert change.max() > 10 or not line.mask(i).any()
        assert not (line.mask(i) & ~boxed).any()


def test_the_light_changes_slowly_and_within_its_range(line):
    lights = [line.light(i) for i in range(300)]
    fields = np.array([light.field().mean() for light in lights])
    assert np.ptp(fields) > 0.5 * GAIN
    assert np.abs(np.diff(fields)).max() < 0.1 * GAIN
    for light in lights:
        assert abs(light.gain - 1) <= GAIN
        assert abs(light.across) <= SLOPE
        assert abs(light.along) <= SLOPE


def test_the_camera_ends_with_the_line_and_starts_again():
    source = open_sample_line("brick?seed=4&frames=3")
    assert source.live is False
    for _ in range(2):
        source.open()
        pictures = [source.read() for _ in range(3)]
        assert [p.name for p in pictures] == ["frame 1", "frame 2", "frame 3"]
        np.testing.assert_array_equal(pictures[2].image, SampleLine(4, 3).frame(2))
        assert source.read() is None
        source.close()
    source.close()


def test_the_camera_must_be_opened():
    with pytest.raises(CameraError, match="not open"):
        open_sample_line("brick").read()


@pytest.mark.parametrize(
    "name",
    ["", "grass", "brick?", "brick?seed=0", "brick?frames=5", "brick?frames=5&seed=2", "brick?frames=5&frames=6"],
)
def test_names_that_may_be_known(name):
    if name.startswith("brick"):
        open_sample_line(name)
    else:
        with pytest.raises(CameraError, match=r"demo:brick\?seed=0&frames=300"):
            open_sample_line(name)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8), min_size=1, max_size=3))
def test_only_known_options_with_counts_are_taken(options):
    query = urlencode(options)
    good = options.keys() <= {"seed", "frames"} and all(re.fullmatch("[0-9]{1,7}", v) for v in options.values())
    if good:
        open_sample_line(f"brick?{query}")
    else:
        with pytest.raises(CameraError, match="demo:brick"):
            open_sample_line(f"brick?{query}")


@pytest.mark.parametrize("query", ["seed=-1", "seed=1.5", "seed=", "frames=x", "speed=3", "seed=99999999", "seed=²"])
def test_a_value_that_is_no_count_is_refused(query):
    with pytest.raises(CameraError, match="demo:brick"):
        open_sample_line(f"brick?{query}")
