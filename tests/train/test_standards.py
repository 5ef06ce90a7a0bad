import numpy as np
import pytest

from engines.judging import by_place, standardised
from train.standards import fit_standards


def maps(n, sizes=((60, 80),), seed=0):
    """Good frames with a bright, restless rim on the left."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        height, width = sizes[i % len(sizes)]
        deviation = np.where(np.arange(width) < width // 4, 3.0, 1.0)
        mean = np.where(np.arange(width) < width // 4, 10.0, 2.0)
        yield (mean + deviation * rng.normal(size=(height, width))).astype(np.float32)


def test_good_frames_become_equally_good_everywhere():
    standards = fit_standards(maps(60, ((60, 80), (120, 90))))
    assert standards.n_frames == 60
    inner = [slice(8, -8), slice(0, 12)], [slice(8, -8), slice(30, -8)]
    others = [standardised(heat, standards) for heat in maps(20, seed=1)]
    for place in inner:
        values = np.concatenate([heat[tuple(place)].ravel() for heat in others])
        assert values.mean() == pytest.approx(0, abs=0.2)
        assert values.std() == pytest.approx(1, abs=0.15)


def test_a_place_where_nothing_ever_happened_does_not_shout():
    def quiet(seed):
        heat = np.random.default_rng(seed).normal(size=(96, 96)).astype(np.float32)
        heat[:, :48] = 5
        return heat

    standards = fit_standards([quiet(seed) for seed in range(30)])
    assert np.min(standards.deviation) > 0.1


def test_even_material_is_left_as_it_is():
    """What no place is special in, only gets another unit: the order of frames stays."""
    rng = np.random.default_rng(2)
    standards = fit_standards([rng.normal(4, 2, (96, 96)).astype(np.float32) for _ in range(40)])
    assert np.ptp(standards.mean) < 0.6
    assert np.ptp(standards.deviation) < 0.3
    assert np.mean(standards.deviation) == pytest.approx(2, abs=0.1)


def test_two_frames_are_the_fewest():
    assert fit_standards(maps(2)).n_frames == 2
    with pytest.raises(ValueError, match="n_frames"):
        fit_standards(maps(1))


def test_what_a_frame_shares_all_over_is_taken_off_but_no_more_than_good_frames_have():
    rng = np.random.default_rng(4)
    noise = [rng.normal(0, 1, (96, 96)).astype(np.float32) for _ in range(40)]
    offsets = np.linspace(-2, 2, len(noise)).astype(np.float32)
    standards = fit_standards([heat + offset for heat, offset in zip(noise, offsets, strict=True)])
    low, high = standards.medians
    deviation = float(np.mean(standards.deviation))
    reach = 3.558 * np.std(offsets, ddof=1) * np.sqrt(1 + 1 / 40)  # Student's t, 39 degrees of freedom, 0.9995
    assert (low, high) == pytest.approx((-reach / deviation, reach / deviation), abs=0.3)

    plain, shifted = (standardised(noise[0] + offset, standards) for offset in (0, 1.5))
    np.testing.assert_allclose(plain, shifted, atol=0.1)  # places differ a little in deviation
    wrong_all_over = standardised(noise[0] + 20, standards)
    assert np.median(wrong_all_over) == pytest.approx((20 - reach) / deviation, abs=0.5)

    as_before = standards.model_copy(update={"medians": None})
    np.testing.assert_array_equal(standardised(noise[0], as_before), by_place(noise[0], standards))


def test_medians_come_in_order():
    standards = fit_standards(maps(3))
    with pytest.raises(ValueError, match="lowest median"):
        type(standards).model_validate(standards.model_dump() | {"medians": (1.0, 0.0)})
