"""Whether the camera has moved: by what stands still in every good frame, such as rails or the machine's frame."""

from collections.abc import Sequence
from typing import final

import cv2
import numpy as np

from engines.engine import Float32Array, UInt8Array

_MOVED_BY = 2  # pixels of the small picture: 1/64 of the longer side
_MOVED_SEARCH = 8  # the shift is looked for within 1/8 of either side
_MOVED_BETTER = 0.15  # correlation that the shift must gain
_MOVED_LIKENESS = 0.7  # of the lowest healthy correlation
_TRIED = 100  # pictures
RELEASE = 0.5
"""A fault is over where this part of the margin is kept, so that it does not flap; good frames must keep it too."""


@final
class Landmarks:
    """What stands still in every good frame, and where."""

    def __init__(self, reference: UInt8Array) -> None:
        """Take the reference, uint8 (h, w), as landmarks."""
        self._shape = height, width = reference.shape
        self._reach = max(1, height // _MOVED_SEARCH), max(1, width // _MOVED_SEARCH)
        relief = _relief(reference)
        self._norm = float(np.linalg.norm(relief))
        self._spectrum = np.fft.rfft2(relief).conj()

    def shift(self, small: UInt8Array) -> tuple[float, float, int, int]:
        """Correlation of a small picture in place, that of its best shift, and this shift (y, x) in small pixels.

        All shifts at once by the correlation theorem; what a shift pushes out at one side comes in at the other,
        which for shifts as small as these costs little correlation.
        """
        if small.shape != self._shape:
            return 0.0, 0.0, 0, 0
        relief = _relief(small)
        found = np.fft.irfft2(np.fft.rfft2(relief) * self._spectrum, self._shape)
        found /= max(self._norm * float(np.linalg.norm(relief)), 1e-6)
        down, right = self._reach
        near = np.roll(found, self._reach, (0, 1))[: 2 * down + 1, : 2 * right + 1]
        y, x = np.unravel_index(int(near.argmax()), near.shape)
        return float(found[0, 0]), float(near[y, x]), int(y) - down, int(x) - right


def _relief(small: UInt8Array) -> Float32Array:
    """The picture without slow changes of light, which say little of where things are."""
    values = small.astype(np.float32)
    return values - cv2.GaussianBlur(values, (0, 0), 6)


def moved(small: UInt8Array, landmarks: Landmarks, likeness: float, margin: float) -> tuple[int, int] | None:
    """The shift (y, x) in small pixels, if there is one and the picture fits it."""
    in_place, best, y, x = landmarks.shift(small)
    fits = best >= _MOVED_LIKENESS * likeness and best >= in_place + margin * _MOVED_BETTER
    return (y, x) if fits and max(abs(y), abs(x)) >= _MOVED_BY * margin else None


def why_no_landmarks(pictures: Sequence[UInt8Array], landmarks: Landmarks, likeness: float) -> str | None:
    """Shift the good frames and see whether that is noticed, and only then."""
    chosen = pictures[:: -(-len(pictures) // _TRIED)]
    if any(moved(small, landmarks, likeness, RELEASE) for small in chosen):
        return "good frames themselves do not lie still enough"
    shifted = [_shifted(small, y, x) for small in chosen for y, x in ((3, 0), (-3, 0), (0, 3), (0, -3))]
    noticed = sum(moved(small, landmarks, likeness, 1.0) is not None for small in shifted)
    if noticed < 0.95 * len(shifted):
        return "nothing in the picture stands still by which a shift could be seen"
    return None


def _shifted(small: UInt8Array, y: int, x: int) -> UInt8Array:
    height, width = small.shape
    rows, columns = np.arange(height) - y, np.arange(width) - x
    return np.asarray(small[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)], np.uint8)
