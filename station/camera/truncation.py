"""Pictures of which only the upper part arrived: a JPEG cut short, inside a Motion-JPEG stream that goes on.

No decoder says so through OpenCV. FFmpeg fills what is missing with the same rows of the picture before; libjpeg, as
OpenCV 4 uses it for V4L2 cameras, repeats the last row that came (OpenCV 5 refuses such a picture). Either looks like
a seam in the material: a defect.
"""

from collections import deque
from itertools import pairwise
from typing import final

import numpy as np

from engines.engine import UInt8Array

BAND = 16  # rows; a JPEG is coded in rows of blocks 8 or 16 pixels high
CELLS = 4  # parts of a band, from left to right
ARMED_AFTER = 8  # pictures in a row whose last cell was new, before an old one means anything


@final
class TruncationCheck:
    """Finds the pictures of one stream whose end is missing; give it every picture, in order.

    A picture is cut short if, in the order in which a JPEG is coded, all of it is new up to some point and nothing
    after it. The sensor's noise makes every part of a picture new. Where it does not - a black corner, a drawing that
    serves as a test picture - the check stays silent: it is armed only while the last corner keeps changing.
    """

    def __init__(self) -> None:
        self._before: UInt8Array | None = None
        self._changed: deque[bool] = deque(maxlen=ARMED_AFTER)

    def check(self, image: UInt8Array) -> str | None:
        """What is wrong with the picture, uint8 (H, W, 3), in words; None if nothing is."""
        before, self._before = self._before, image
        if before is None or before.shape != image.shape:
            self._changed.clear()
            return None
        last = _cells(image)[-1]
        if not _old(image, before, last):
            self._changed.append(True)
            return None
        if len(self._changed) == ARMED_AFTER and all(self._changed):
            old = [_old(image, before, cell) for cell in _cells(image)]
            first = old.index(True)
            if first > 0 and all(old[first:]):
                return f"the last {1 - first / len(old):.0%} of the picture did not arrive"
        self._changed.append(False)
        return None


def _cells(image: UInt8Array) -> list[tuple[slice, slice]]:
    """The picture in cells, in the order of coding; the last band may be lower than the others."""
    height, width = image.shape[:2]
    edges = [width * i // CELLS for i in range(CELLS + 1)]
    return [
        np.s_[top : min(top + BAND, height), left:right]
        for top in range(0, height, BAND)
        for left, right in pairwise(edges)
    ]


def _old(image: UInt8Array, before: UInt8Array, cell: tuple[slice, slice]) -> bool:
    part = image[cell]
    return np.array_equal(part, before[cell]) or (len(part) > 1 and bool((part[1:] == part[0]).all()))
