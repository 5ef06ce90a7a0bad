"""What good frames look like to the smoothed anomaly map, by place in the frame."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from engines.engine import Float32Array
from engines.judging import by_place, thin
from engines.manifest import Standards

GRID = 48  # cells a side: fine enough for the rim of a part, coarse enough for a few dozen frames
SPREAD = 1.5  # cells; the deviation of the Gaussian that lets a cell learn from its neighbours
PRIOR_FRAMES = 5  # the deviation of all places counts as much as this many frames of the place itself
LEAST_DEVIATION = 0.2  # of that of all places; a place where nothing ever happened may still show something
GOOD_MEDIANS = 0.999  # of the medians of good frames to come lie in the range that is taken off
_DIGITS = 6


def fit_standards(maps: Iterable[Float32Array]) -> Standards:
    """Mean and deviation by place.

    Args:
        maps: smoothed anomaly maps of good frames, float32 (h, w) of any sizes, at least two.
    """
    firsts, seconds, thinned = [], [], []
    for heat in maps:
        # Of a cell's pixels, not of its mean: a defect is as small as a pixel of the smoothed map.
        firsts.append(cv2.resize(heat, (GRID, GRID), interpolation=cv2.INTER_AREA))
        seconds.append(cv2.resize(np.square(heat), (GRID, GRID), interpolation=cv2.INTER_AREA))
        thinned.append(thin(heat))
    n = len(firsts)
    mean = _spread(np.mean(firsts, axis=0))
    variance = _spread(np.mean(seconds, axis=0) - 2 * mean * np.mean(firsts, axis=0) + mean**2)
    everywhere = float(variance.mean())
    variance = (n * variance + PRIOR_FRAMES * everywhere) / (n + PRIOR_FRAMES)
    deviation = np.sqrt(np.maximum(variance, max(LEAST_DEVIATION**2 * everywhere, 1e-12)))
    standards = Standards(mean=_rows(mean), deviation=_rows(deviation), n_frames=n)
    medians = np.array([np.median(by_place(heat, standards)) for heat in thinned], np.float64)
    # Of a few frames none has the median that the next may have: Student's prediction interval instead of their range.
    reach = stats.t.ppf((1 + GOOD_MEDIANS) / 2, n - 1) * medians.std(ddof=1) * np.sqrt(1 + 1 / n)
    low, high = (round(float(medians.mean() + side * reach), _DIGITS) for side in (-1, 1))
    return standards.model_copy(update={"medians": (low, high)})


def _spread(field: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(field.astype(np.float64), (0, 0), SPREAD, borderType=cv2.BORDER_REFLECT))


def _rows(field: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{value:.{_DIGITS}g}") for value in row) for row in field)
