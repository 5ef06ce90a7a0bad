"""Good frames with a defect drawn into them: what a scorer should find, where no real defect is at hand.

The five kinds of ``engines.defects``, none of which training draws, so that no model is measured by its own recipe.
Their strength follows the frame's own contrast: neither invisible nor trivial (docs/decisions/0064).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.defects import KINDS, Defect, Kind, make_defect
from engines.engine import Float32Array, UInt8Array

CONTRASTS: dict[Kind, tuple[float, float]] = {
    "scratch": (0.9, 1.8),
    "stain": (1.0, 2.0),
    "hole": (1.0, 2.0),
    "thread": (0.9, 1.8),
    "dent": (1.0, 2.0),
}
"""Root mean square of the change by kind, in standard deviations of the frame's pixels."""

TRIES = 20
_FRAMES = 40  # enough to tell, and quickly done
_LEAST_DEVIATION = 2.5  # grey levels; as much as the training's recipe takes a flat surface for
_MOST_COVER = 1.5  # times the defect as it is drawn, beyond which a picture of a defect is no longer one
_LEAST_CHANGE = 1.0  # grey levels, mean over the mask; less, as black on black, is no defect


@dataclass(frozen=True)
class PlantedFrame:
    """A good frame with one defect in it.

    Attributes:
        image: uint8 (H, W, 3).
        mask: bool (H, W), True on the defect.
        kind: what it is called.
        contrast: see ``CONTRASTS``.
    """

    image: UInt8Array
    mask: NDArray[np.bool_]
    kind: str
    contrast: float


def plant_defect(image: UInt8Array, kind: Kind, rng: np.random.Generator, scale: float = 1.0) -> PlantedFrame | None:
    """A copy of the frame with a defect somewhere in it; None if none of some tries can be seen there.

    Args:
        image: good frame, uint8 (H, W, 3), BGR or RGB.
        kind: of the defect.
        rng: decides everything.
        scale: by which the model's preprocessing scales frames. Defects are as large to the model whatever it is.
    """
    for _ in range(TRIES):
        change, mask, contrast = _change(image, kind, rng, scale)
        planted = blended(image, change, mask)
        if planted is not None:
            return PlantedFrame(planted, mask, kind, contrast)
    return None


def planted_spacing(n_good: int) -> int:
    """Defects are planted into every so many of ``n_good`` frames: into 40 to 79 of them, or into all."""
    return max(1, n_good // _FRAMES)


def plant_each_kind(image: UInt8Array, rng: np.random.Generator, scale: float = 1.0) -> Iterator[PlantedFrame]:
    """A copy of the frame for each kind that can be seen in it; see :func:`plant_defect`."""
    for kind in KINDS:
        planted = plant_defect(image, kind, rng, scale)
        if planted is not None:
            yield planted


def blended(image: UInt8Array, change: Float32Array, mask: NDArray[np.bool_]) -> UInt8Array | None:
    """The frame with ``change`` (H, W, 3), grey levels, added; None where hardly anything changes within ``mask``."""
    planted = np.clip(np.rint(image + change), 0, 255).astype(np.uint8)
    visible = mask.any() and cv2.absdiff(planted, image)[mask].mean() >= _LEAST_CHANGE
    return planted if visible else None


def _change(
    image: UInt8Array, kind: Kind, rng: np.random.Generator, scale: float
) -> tuple[Float32Array, NDArray[np.bool_], float]:
    """What a defect does to the frame, its mask, and its contrast."""
    height, width = image.shape[:2]
    defect = _resized(make_defect(kind, rng), rng.uniform(0.4, 1.0) / scale, min(height, width) // 2)
    h, w = defect.shade.shape
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    area = np.s_[y : y + h, x : x + w]
    deviation = max(float(image.mean(axis=2).std()), _LEAST_DEVIATION)

    surface = image[area].astype(np.float32)
    drawn = np.stack([defect.applied(surface[..., c]) for c in range(3)], axis=2) - surface
    change, mask = np.zeros(image.shape, np.float32), np.zeros((height, width), np.bool_)
    mask[area] = defect.mask
    strength = float(np.sqrt(np.square(drawn[defect.mask]).mean())) if defect.mask.any() else 0.0
    wanted = rng.uniform(*CONTRASTS[kind]) * deviation
    cover = min(wanted / max(strength, 1e-6), _MOST_COVER)
    change[area] = cover * drawn
    return change, mask, cover * strength / deviation


def _resized(defect: Defect, factor: float, longest: int) -> Defect:
    """The picture of a defect, resized by ``factor``, or so that no side exceeds ``longest`` pixels."""
    h, w = defect.shade.shape
    factor = min(factor, longest / max(h, w))
    size = (max(1, round(w * factor)), max(1, round(h * factor)))
    interpolation = cv2.INTER_AREA if factor <= 1 else cv2.INTER_LINEAR
    layers = (defect.shade, defect.alpha, defect.colour)
    shade, alpha, colour = (
        np.asarray(cv2.resize(layer, size, interpolation=interpolation), np.float32) for layer in layers
    )
    return Defect(defect.kind, shade, alpha, colour)
