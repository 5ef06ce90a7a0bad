"""Metrics against implementations that follow the definitions word by word."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import label

from train.metrics import PRO_LIMIT, PixelCurve, image_metrics

SCORES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)
# Few levels, so that ties are common, and far enough apart that no two share a bin.
LEVELS = st.sampled_from([0.0, 1e-3, 0.0101, 0.1, 0.5, 0.75, 1.0, 2.0])


@st.composite
def image_sets(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7))
    return [
        (draw(hnp.arrays(np.float32, shape, elements=LEVELS)), draw(hnp.arrays(np.bool_, shape)))
        for _ in range(draw(st.integers(1, 3)))
    ]


def curve_of(images: list[tuple[np.ndarray, np.ndarray]]) -> PixelCurve:
    curve = PixelCurve()
    for residual, mask in images:
        curve.add(residual, mask)
    return curve


def pairwise_auroc(negatives: np.ndarray, positives: np.ndarray) -> float:
    difference = positives[:, None] - negatives[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


@given(good=SCORES, anomalous=SCORES)
def test_image_metrics_follow_their_definitions(good: list[float], anomalous: list[float]) -> None:
    negatives, positives = np.array(good), np.array(anomalous)
    thresholds = np.arange(-0.5, 8)
    balanced = [((positives > t).mean() + (negatives <= t).mean()) / 2 for t in thresholds]

    metrics = image_metrics(good, anomalous)

    assert metrics.auroc == pytest.approx(pairwise_auroc(negatives, positives))
    assert metrics.balanced_accuracy == pytest.approx(max(balanced))


def test_image_metrics_of_a_worked_example() -> None:
    metrics = image_metrics(good=[1, 2, 3, 7], anomalous=[4, 5, 6])

    assert metrics.auroc == pytest.approx(9 / 12)
    assert metrics.balanced_accuracy == pytest.approx((1 + 3 / 4) / 2)


@pytest.mark.parametrize(("good", "anomalous"), [([], [1.0]), ([1.0], []), ([1.0, np.nan], [2.0])])
def test_image_metrics_refuse_what_has_no_answer(good: list[float], anomalous: list[float]) -> None:
    with pytest.raises(ValueError, match=r"both must be there|NaN"):
        image_metrics(good, anomalous)


@given(images=image_sets())
def test_pixel_auroc_is_the_share_of_ordered_pairs(images: list[tuple[np.ndarray, np.ndarray]]) -> None:
    residual = np.concatenate([r.ravel() for r, _ in images])
    defective = np.concatenate([m.ravel() for _, m in images])

    found = curve_of(images).auroc()

    if defective.all() or not defective.any():
        assert found is None
    else:
        assert found == pytest.approx(pairwise_auroc(residual[~defective], residual[defective]))


def brute_force_au_pro(images: list[tuple[np.ndarray, np.ndarray]], limit: float) -> float:
    """Threshold by threshold, region by region; the area by exact integration of the polyline."""
    regions = []
    for residual, mask in images:
        labels, n = label(mask, structure=np.ones((3, 3)))
        regions += [residual[labels == i] for i in range(1, n + 1)]
    normal = np.concatenate([r[~m] for r, m in images])
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for r, _ in images for v in r.ravel()}, reverse=True):
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((float(np.mean(normal >= threshold)), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > x0 and x0 < limit:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@given(images=image_sets(), limit=st.sampled_from([0.05, PRO_LIMIT, 0.5, 1.0]))
@settings(max_examples=60)
def test_au_pro_equals_brute_force(images: list[tuple[np.ndarray, np.ndarray]], limit: float) -> None:
    defective = np.concatenate([m.ravel() for _, m in images])

    found = curve_of(images).au_pro(limit)

    if defective.all() or not defective.any():
        assert found is None
    else:
        assert found == pytest.approx(brute_force_au_pro(images, limit), abs=1e-12)


def test_au_pro_weighs_regions_not_pixels() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    residual = np.where(mask, 1.0, 0.1).astype(np.float32)
    residual[15, 15] = 0.05  # the small region is missed: one of two regions, one of 101 pixels

    curve = curve_of([(residual, mask)])

    assert curve.n_regions == 2
    assert curve.auroc() == pytest.approx(100 / 101)
    # The curve rises to (0, 1/2) and then straight to (1, 1/2): all normal pixels tie above the missed one.
    assert curve.au_pro() == pytest.approx(1 / 2)


def test_diagonal_neighbours_are_one_region() -> None:
    curve = curve_of([(np.ones((2, 2), np.float32), np.eye(2, dtype=bool))])

    assert curve.n_regions == 1


@settings(max_examples=20)
@given(images=image_sets(), split=st.integers(0, 3))
def test_merged_curves_equal_one_curve(images: list[tuple[np.ndarray, np.ndarray]], split: int) -> None:
    merged = curve_of(images[:split]).merged(curve_of(images[split:]))
    whole = curve_of(images)

    assert merged.auroc() == pytest.approx(whole.auroc())
    assert merged.au_pro() == pytest.approx(whole.au_pro())
    assert merged.n_regions == whole.n_regions


def test_binning_of_continuous_residuals_stays_within_its_bound() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((120, 160), bool)
    mask[20:60, 30:90] = True
    residual = np.clip(rng.gamma(2, 0.05, mask.shape) + 0.05 * mask, 0, 2).astype(np.float32)

    curve = curve_of([(residual, mask)])

    error = abs(curve.auroc() - pairwise_auroc(residual[~mask], residual[mask]))
    assert 0 < error <= curve.auroc_error_bound() < 1e-3
    assert curve.au_pro() == pytest.approx(brute_force_au_pro([(residual, mask)], PRO_LIMIT), abs=1e-3)


def test_the_order_of_a_map_is_all_that_counts() -> None:
    rng = np.random.default_rng(3)
    mask = np.zeros((40, 40), bool)
    mask[5:15, 5:20] = True
    heat = (rng.normal(size=mask.shape) + mask).astype(np.float32)  # negative values too
    positive = np.exp(heat / 8).astype(np.float32)
    for a, b in ((heat, positive), (heat - 50, heat + 50)):
        found, expected = curve_of([(a, mask)]), curve_of([(b, mask)])
        assert found.auroc() == pytest.approx(expected.auroc(), abs=2e-3)
        assert found.au_pro() == pytest.approx(expected.au_pro(), abs=5e-3)
    assert curve_of([(heat, mask)]).auroc() == pytest.approx(pairwise_auroc(heat[~mask], heat[mask]), abs=1e-4)


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_maps_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        PixelCurve().add(np.full((2, 2), value, np.float32), np.zeros((2, 2), bool))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        PixelCurve().add(np.zeros((2, 2), np.float32), np.zeros((2, 3), bool))
