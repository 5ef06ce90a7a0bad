import numpy as np
import pytest

from engines.manifest import Preprocessing
from engines.tiling import Tiler
from station.frames import Inspection
from station.survey import MAX_PATCHES, PER_FRAME, Survey, findings

P = 16
ROWS, COLUMNS = 6, 9
SIZE = (ROWS * P, COLUMNS * P)


def inspection(scores, stride=P, size=SIZE):
    """Of a frame of 16 x 16 patches with these scores."""
    tiler = Tiler(Preprocessing(colour="rgb", frame_size=None, scale=1.0, patch_size=P, stride=stride))
    grid = tiler.grid(size)
    heat = np.zeros(size, np.float32)
    return Inspection(float(np.max(scores)), np.asarray(scores, np.float32).ravel(), heat, grid, {})


def grey(size=SIZE, level=128):
    return np.full((*size, 3), level, np.uint8)


def look(shape, n=40, seed=0):
    """A survey of ``n`` frames of noisy patch scores around 100, plus ``shape`` (R, C)."""
    rng = np.random.default_rng(seed)
    survey = Survey()
    for i in range(n):
        survey.add(f"{i}.png", grey(), inspection(100 + rng.normal(0, 10, (ROWS, COLUMNS)) + shape))
    return survey


def where(shape, reach=200.0):
    return [(finding.where, finding.at) for finding in findings(look(shape).places(), reach)]


ACROSS = np.linspace(0, 1, COLUMNS)[None, :] * np.ones((ROWS, 1))
DOWN = np.linspace(0, 1, ROWS)[:, None] * np.ones((1, COLUMNS))
MIDDLE = np.zeros((ROWS, COLUMNS))
MIDDLE[1:-1, 1:-1] = 1
SPOT = np.zeros((ROWS, COLUMNS))
SPOT[4, 2] = 1


def test_even_scores_give_no_finding():
    assert where(np.zeros((ROWS, COLUMNS))) == []


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        pytest.param(60 * ACROSS, "right", id="right"),
        pytest.param(-60 * ACROSS, "left", id="left"),
        pytest.param(60 * DOWN, "bottom", id="bottom"),
        pytest.param(-60 * DOWN, "top", id="top"),
        pytest.param(-40 * MIDDLE, "edges", id="edges"),
        pytest.param(40 * MIDDLE, "middle", id="middle"),
    ],
)
def test_the_part_that_scores_higher_is_named(shape, part):
    assert where(shape)[0] == (part, None)


def test_a_spot_is_told_with_its_place():
    assert ("spot", (2 * P + P // 2, 4 * P + P // 2)) in where(80 * SPOT)


def test_stripes_are_told_as_such():
    stripes = 40 * (np.arange(COLUMNS)[None, :] % 2) * np.ones((ROWS, 1))
    assert where(stripes) == [("columns", None)]


def test_small_differences_are_not_told():
    assert where(60 * ACROSS, reach=2000.0) == []


def test_every_finding_says_what_helps():
    for shape in (60 * ACROSS, 60 * DOWN, -40 * MIDDLE, 40 * MIDDLE, 80 * SPOT):
        for finding in findings(look(shape).places(), 200.0):
            assert (
                f"by {100 * finding.excess:.0f} % of the way from an ordinary patch to the highest-scoring good frames"
                in finding.words()
            )


def test_places_hold_mean_highest_and_where_the_frames_peak():
    survey = Survey()
    for value in (10.0, 30.0):
        scores = np.ones((ROWS, COLUMNS))
        scores[2, 3] = value
        survey.add("", grey(level=int(value)), inspection(scores))
    places = survey.places()
    assert (places.mean[2, 3], places.highest[2, 3], places.first[2, 3]) == (20.0, 30.0, 2)
    assert places.n == places.first.sum() == 2
    assert np.all(places.average == 20)
    down, across = places.edges
    assert (down[0], down[-1], across[0], across[-1]) == (0, SIZE[0], 0, SIZE[1])


def test_places_are_those_of_the_most_frequent_size():
    survey = Survey()
    small = (2 * P, 3 * P)
    survey.add("odd", grey(small), inspection(np.ones((2, 3)), size=small))
    for _ in range(3):
        survey.add("", grey(), inspection(np.ones((ROWS, COLUMNS))))
    assert survey.places().grid.frame_size == SIZE


def test_a_frame_of_one_patch_has_no_places():
    survey = Survey()
    survey.add("", grey((P, P)), inspection([1.0], size=(P, P)))
    assert survey.places() is None
    assert len(survey.patches) == 1


def test_the_montage_takes_the_highest_few_of_each_frame_and_no_neighbours():
    survey = look(np.zeros((ROWS, COLUMNS)), n=30)
    assert len(survey.patches) == MAX_PATCHES
    scores = [patch.score for patch in survey.patches]
    assert scores == sorted(scores, reverse=True)
    odd = np.full((ROWS, COLUMNS), 1000.0)
    survey.add("odd.png", grey(), inspection(odd))
    taken = [patch.box for patch in survey.patches if patch.name == "odd.png"]
    assert len(taken) == PER_FRAME
    apart = [max(abs(a.x - b.x), abs(a.y - b.y)) for a in taken for b in taken if a is not b]
    assert min(apart) >= 1.5 * P


def test_a_patch_at_the_corner_is_shown_at_the_scale_of_the_others():
    scores = np.zeros((ROWS, COLUMNS))
    scores[0, 0] = scores[3, 4] = 5.0
    survey = Survey()
    survey.add("", grey(level=200), inspection(scores))
    corner, inner = (next(p for p in survey.patches if p.box[:2] == at) for at in ((0, 0), (4 * P, 3 * P)))
    assert corner.picture.shape == inner.picture.shape == (2 * P, 2 * P, 3)
    assert corner.inside == inner.inside
    assert corner.picture[0, 0, 0] == 128
    assert corner.picture[-1, -1, 0] == 200
