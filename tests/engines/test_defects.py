import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.defects import KINDS, make_defect

SURFACE = 110.0


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_defect_is_visible_and_has_the_size_of_one(kind, seed):
    defect = make_defect(kind, np.random.default_rng(seed))
    h, w = defect.shade.shape
    assert defect.alpha.shape == defect.colour.shape == (h, w)
    assert defect.alpha.min() >= 0
    assert defect.alpha.max() <= 1
    assert 15 <= max(h, w) <= 190
    surface = np.full((h, w), SURFACE, np.float32)
    applied = defect.applied(surface)
    assert np.isfinite(applied).all()
    assert np.abs(applied - surface)[defect.mask].mean() > 15
    assert defect.mask.sum() > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_is_cut_to_what_is_visible(kind):
    mask = make_defect(kind, np.random.default_rng(0)).mask
    assert mask[0].any()
    assert mask[-1].any()
    assert mask[:, 0].any()
    assert mask[:, -1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_soft(kind):
    # A cartoon would jump from surface to defect; a camera sees steps in between.
    defect = make_defect(kind, np.random.default_rng(1))
    applied = defect.applied(np.full(defect.shade.shape, SURFACE, np.float32))
    change = np.abs(applied - SURFACE)
    between = (change > 0.1 * change.max()) & (change < 0.7 * change.max())
    area = (change > 0.1 * change.max()).sum()
    assert between.sum() > 2 * np.sqrt(area)  # all the way round: even a disc has 3.5 times that on its edge


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_defect_and_another_seed_another(kind):
    a, b, c = (make_defect(kind, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a.shade, b.shade)
    np.testing.assert_array_equal(a.alpha, b.alpha)
    assert a.shade.shape != c.shade.shape or not np.array_equal(a.shade, c.shade)


@pytest.mark.parametrize("kind", ["stain", "dent"])
def test_the_texture_stays_visible_in_a_stain_and_a_dent(kind):
    defect = make_defect(kind, np.random.default_rng(2))
    dark, light = (defect.applied(np.full(defect.shade.shape, v, np.float32)) for v in (80.0, 160.0))
    assert (light - dark).min() > 20
