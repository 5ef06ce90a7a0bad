"""The web of the sample line: a brick photograph, made flat and joined to an endless belt.

The photograph is ``brick.png``, one of the CC0 pictures that scikit-image carries inside its wheel
(https://ambientcg.com, "Bricks25"). It shows a wall in perspective; a homography makes the joints parallel, so that a
frame from anywhere on the belt shows bricks of one size. Of the twelve columns of bricks the left six make
the ``training`` belt and the right six the ``line`` belt. They share no pixel, but they are one photograph of one wall:
the same bricks, mortar, lens and light. The demo shows that the station works, not how well it generalises.

A belt is its half of the photograph followed by the same rows upside down. The turning points lie where no joint is
near, so the bricks there are whole and straight: nothing in the seam looks like a defect.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.engine import UInt8Array

Part = Literal["training", "line"]
WIDTH = 256  # of the belt and of the frames, pixels

# Photograph -> wall: found by least squares so that the 138 long and 149 short joint edges which a line segment
# detector sees become vertical and horizontal. Rows of a homography, acting on (x, y, 1) of the photograph.
_PHOTOGRAPH_TO_WALL = np.array(
    [
        [1.20802103, 0.296968426, 98.1979786],
        [0.0198861375, 1.61711630, 185.271476],
        [-1.66791729e-06, 8.16856206e-04, 1.0],
    ]
)
# (left, top, right, bottom) on the wall: from joint to joint across, and from turning point to turning point along
# the belt. The nearest cross joint to a turning point is 13 pixels away.
_PARTS: dict[Part, tuple[int, int, int, int]] = {
    "training": (183, 196, 397, 699),
    "line": (397, 198, 611, 710),
}


class DemoError(Exception):
    """The demo cannot run here; the message says what is missing and how to get it."""


def photograph(name: str = "brick") -> UInt8Array:
    """A photograph of a texture, uint8 (512, 512), grey; read from scikit-image's installed files, never downloaded.

    Raises:
        DemoError: scikit-image is not installed, or its installation lacks the picture.
    """
    spec = importlib.util.find_spec("skimage")  # finds it without the second that importing it takes
    if spec is None or spec.origin is None:
        raise DemoError(
            "the demo's texture comes with scikit-image, which is not installed: pip install 'cbigan-station[demo]'"
        )
    path = Path(spec.origin).parent / "data" / f"{name}.png"
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
    if image is None or image.shape != (512, 512):
        raise DemoError(
            f"{path} is missing or altered; reinstall scikit-image: pip install --force-reinstall scikit-image"
        )
    return image.astype(np.uint8, copy=False)


@cache
def belt(part: Part) -> NDArray[np.float32]:
    """The endless belt of a part: float32 (L, 256), grey 0..255; row L - 1 is followed by row 0."""
    left, top, right, bottom = _PARTS[part]
    scale = WIDTH / (right - left)
    height = round((bottom - top) * scale)
    wall_to_belt = np.array([[scale, 0, -left * scale], [0, scale, -top * scale], [0, 0, 1]])
    half = cv2.warpPerspective(
        photograph().astype(np.float32),
        wall_to_belt @ _PHOTOGRAPH_TO_WALL,
        (WIDTH, height),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    whole = np.vstack([half, half[::-1]]).astype(np.float32)
    whole.setflags(write=False)  # cached, so shared
    return whole
