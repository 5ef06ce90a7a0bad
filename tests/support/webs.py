"""Material that passes under a test's camera: a texture that moves, with a sensor's noise."""

from functools import cache

import cv2
import numpy as np

STEP = 7  # rows that the web moves from frame to frame


@cache
def _belt(width: int, contrast: float) -> np.ndarray:
    rng = np.random.default_rng(5)
    belt = sum(
        cv2.GaussianBlur(rng.standard_normal((2048, width)), (0, 0), scale) * scale for scale in (0.6, 1.2, 2.4, 4.8)
    )
    return np.asarray(contrast * belt / np.std(belt), np.float32)


@cache
def web(
    number: int, size: tuple[int, int] = (192, 256), *, grey: float = 120, contrast: float = 20, noise: float = 2
) -> np.ndarray:
    """Frame ``number`` of an endless good web, uint8 (H, W, 3), BGR, grey."""
    belt = _belt(size[1], contrast)
    rows = (np.arange(size[0]) + STEP * number) % len(belt)
    sensor = np.random.default_rng(number).normal(0, noise, size)
    image = np.repeat(np.clip(grey + belt[rows] + sensor, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    image.flags.writeable = False  # it is shared
    return image
