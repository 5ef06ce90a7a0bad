"""From the scores of patches to what a frame is judged by. Training-side evaluation and the station judge with this."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from engines.engine import Float32Array, PatchScores
from engines.manifest import Description, Standards
from engines.tiling import PatchGrid, Size

_FINE_SIGMA = 2.5
"""A blur is computed at a resolution at which it is about this wide: 8 ms instead of 123 for a 1920 x 1080 frame."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a frame is judged by.

    Attributes:
        patch_scores: float32 (N,); the frame's score is their maximum.
        heat: float32 (h, w), prepared pixels: where the frame departs from good material.
    """

    patch_scores: Float32Array
    heat: Float32Array


@dataclass(frozen=True, slots=True)
class Judging:
    """How a bundle's scores judge a frame: by its anomaly map, or, where its graph has none, by A(x) of eq. 7.

    Attributes:
        lambda_: weight of the feature error, eq. 7.
        smoothing: standard deviation of the Gaussian that smooths the anomaly map, prepared pixels; None: no map.
        standards: what the smoothed map of good frames looks like by place; None: it is judged as it is.
    """

    lambda_: float
    smoothing: float | None = None
    standards: Standards | None = None

    @classmethod
    def of(cls, description: Description) -> "Judging":
        """As the bundle's manifest says."""
        return cls(description.lambda_, description.smoothing, description.standards)

    def __call__(self, scores: PatchScores, grid: PatchGrid) -> Judged:
        """Judge a frame.

        The map is smoothed across patches: a defect on a seam is one defect, and single pixels mean little. A patch
        scores what the smoothed map reaches in it.

        Args:
            scores: of the frame's N patches.
            grid: where they lie.
        """
        if self.smoothing is None or scores.anomaly_map is None:
            return Judged(scores.anomaly_score(self.lambda_), grid.assemble(scores.residual))
        heat = smoothed(grid.assemble(scores.anomaly_map), self.smoothing)
        if self.standards is not None:
            heat = standardised(heat, self.standards)
        return Judged(grid.peaks(heat), heat)


def standardised(heat: Float32Array, standards: Standards) -> Float32Array:
    """A smoothed map in deviations from what its places, and then the frame itself, are used to; float32 (h, w)."""
    deviations = by_place(heat, standards)
    if standards.medians is None:
        return deviations
    # Beyond what good frames have, a median is not taken off: a frame that is wrong all over stays wrong.
    deviations -= np.float32(np.clip(np.median(thin(deviations)), *standards.medians))
    return deviations


def thin(heat: Float32Array) -> Float32Array:
    """Every fourth row and column of a smoothed map, which tell its median well enough."""
    return np.ascontiguousarray(heat[::4, ::4])


def by_place(heat: Float32Array, standards: Standards) -> Float32Array:
    """A smoothed map in deviations from what its places are used to; float32 (h, w)."""
    mean, deviation = _standards_of_size(standards, heat.shape)
    deviations = heat - mean
    deviations /= deviation
    return deviations


@lru_cache(maxsize=2)  # a station's frames are all of one size
def _standards_of_size(standards: Standards, size: Size) -> tuple[Float32Array, Float32Array]:
    """Mean and deviation for every pixel of a map of (height, width); not to be written to."""
    height, width = size
    mean, deviation = (
        np.asarray(cv2.resize(np.array(rows, np.float32), (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        for rows in (standards.mean, standards.deviation)
    )
    for field in (mean, deviation):
        field.setflags(write=False)
    return mean, deviation


def smoothed(image: Float32Array, sigma: float) -> Float32Array:
    """Blur by a Gaussian of standard deviation ``sigma`` pixels; float32 (h, w), mirrored at the border."""
    height, width = image.shape
    shrink = max(1, round(sigma / _FINE_SIGMA))
    size = (-(-width // shrink), -(-height // shrink))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if shrink > 1 else image
    small = cv2.GaussianBlur(
        small, (0, 0), sigma * size[0] / width, sigmaY=sigma * size[1] / height, borderType=cv2.BORDER_REFLECT
    )
    if shrink > 1:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(small, np.float32)
