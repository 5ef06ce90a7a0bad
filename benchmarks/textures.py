"""Two materials that anyone may have: scikit-image's CC0 photographs of grass and gravel, in MVTec AD layout.

Training frames come from the upper part of a photograph and test frames from the lower: they share no pixel, but they
are one photograph. Defects are the demo's five kinds; nothing about models or scores was chosen on these pictures.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.defects import KINDS, make_defect
from engines.engine import UInt8Array
from station.demo.textures import photograph

MATERIALS = ("grass", "gravel")
SIDE = 192  # of the frames, pixels
TRAINING_ROWS = 312  # of 512
N_TRAIN, N_GOOD, N_PER_KIND = 120, 40, 8
_NOISE = 2.0  # grey levels


def write_material(name: str, out: Path) -> Path:
    """Write one of ``MATERIALS`` to ``out``/``name``, unless it is there; the folder.

    Raises:
        DemoError: scikit-image is not installed, or its installation lacks the picture.
    """
    folder = out / name
    if not (folder / "complete").is_file():
        for path, image in _pictures(name):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), image)
        (folder / "complete").touch()
    return folder


def _pictures(name: str) -> Iterator[tuple[str, UInt8Array]]:
    rng = np.random.default_rng(MATERIALS.index(name))
    whole = photograph(name).astype(np.float32)
    upper, lower = whole[:TRAINING_ROWS], whole[TRAINING_ROWS:]
    for i in range(N_TRAIN):
        yield f"train/good/{i:03}.png", _seen(_crop(upper, rng), rng)
    for i in range(N_GOOD):
        yield f"test/good/{i:03}.png", _seen(_crop(lower, rng), rng)
    for kind in KINDS:
        for i in range(N_PER_KIND):
            surface, mask = _crop(lower, rng), np.zeros((SIDE, SIDE), np.uint8)
            defect = make_defect(kind, rng)
            height, width = defect.shade.shape
            if max(height, width) > SIDE:
                raise ValueError(f"a {kind} of {width} x {height} pixels is larger than a frame")
            y, x = (int(rng.integers(SIDE - length + 1)) for length in (height, width))
            area = np.s_[y : y + height, x : x + width]
            surface[area] = defect.applied(surface[area])
            mask[area] = defect.mask * np.uint8(255)
            yield f"test/{kind}/{i:03}.png", _seen(surface, rng)
            yield f"ground_truth/{kind}/{i:03}_mask.png", mask


def _crop(part: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = (int(rng.integers(length - SIDE + 1)) for length in part.shape)
    return part[y : y + SIDE, x : x + SIDE].copy()


def _seen(surface: NDArray[np.float32], rng: np.random.Generator) -> UInt8Array:
    """A surface as the camera sees it: under light that varies from frame to frame, with noise."""
    slope_y, slope_x = rng.uniform(-0.05, 0.05, 2)
    side = np.linspace(-1, 1, SIDE)
    light = rng.uniform(0.92, 1.08) + slope_y * side[:, None] + slope_x * side[None, :]
    return np.asarray((surface * light + rng.normal(0, _NOISE, surface.shape)).round().clip(0, 255), np.uint8)
