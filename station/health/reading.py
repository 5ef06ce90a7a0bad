"""What one frame measures: levels, sharpness, noise, colour. Cheap enough for every frame."""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from engines.engine import Float32Array, UInt8Array

_SAMPLE_SIDE = 480  # longer side of the sample that levels are taken from, pixels
SMALL_SIDE = 128  # longer side of the picture that is compared with the reference
_TILE = 64  # pixels, a multiple of 16; sharpness and noise are taken from tiles at full resolution
_TILES = (4, 6)  # rows, columns
_MIN_TEXTURED = 3  # tiles that sharpness needs
TAIL = 0.03  # share of the pixels beyond the levels `dark` and `bright`: more than a clock shown in the picture takes
CLIPPED = 250  # grey level from which a pixel is as bright as the sensor goes


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one frame measures. Levels are grey values, 0..255.

    Attributes:
        size: height and width of the frame.
        brightness: mean.
        dark: 3 % of the pixels are darker.
        bright: 3 % of the pixels are brighter.
        clipped: share of the pixels at the upper end of the scale.
        sharpness: detail of a few pixels beside that of some ten, in the sharpest quarter of the textured tiles; None
            where there are too few to tell from.
        textured: share of the tiles that have texture.
        noise: standard deviation of the finest detail, in the smoothest quarter of the frame.
        colour: blue minus red, median.
        small: uint8 (h, w), grey, 128 pixels on the longer side.
    """

    size: tuple[int, int]
    brightness: float
    dark: float
    bright: float
    clipped: float
    sharpness: float | None
    textured: float
    noise: float
    colour: float
    small: UInt8Array = field(repr=False)


def measure(image: UInt8Array) -> Reading:
    """Measure a frame, uint8 (H, W, 3), BGR; a millisecond or two for 1920 x 1080."""
    height, width = image.shape[:2]
    sample = _shrunken(image, _SAMPLE_SIDE, cv2.INTER_NEAREST)
    grey = np.asarray(cv2.cvtColor(sample, cv2.COLOR_BGR2GRAY), np.uint8)
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    shares = counts.cumsum() / counts.sum()
    few = _shrunken(sample, SMALL_SIDE, cv2.INTER_NEAREST)
    sharpness, textured, noise = detail(tiles_of(image))
    return Reading(
        size=(height, width),
        brightness=float(counts @ np.arange(256) / counts.sum()),
        dark=float(np.searchsorted(shares, TAIL)),
        bright=float(np.searchsorted(shares, 1 - TAIL)),
        clipped=float(counts[CLIPPED:].sum() / counts.sum()),
        sharpness=sharpness,
        textured=textured,
        noise=noise,
        colour=float(np.median(few[..., 0].astype(np.int16) - few[..., 2])),
        small=_shrunken(grey, SMALL_SIDE, cv2.INTER_AREA),
    )


def _shrunken(image: UInt8Array, side: int, how: int) -> UInt8Array:
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)


def tiles_of(image: UInt8Array) -> Float32Array:
    """Grey tiles (n, t, t), evenly over the frame, at full resolution."""
    height, width = image.shape[:2]
    tile = min(_TILE, max(32, min(height, width) // 3 // 16 * 16))
    rows, columns = min(_TILES[0], height // tile), min(_TILES[1], width // tile)
    if not rows or not columns:
        return np.empty((0, tile, tile), np.float32)
    tops = np.linspace(0, height - tile, rows).astype(int)
    lefts = np.linspace(0, width - tile, columns).astype(int)
    return np.array(
        [cv2.cvtColor(image[y : y + tile, x : x + tile], cv2.COLOR_BGR2GRAY) for y in tops for x in lefts], np.float32
    )


def detail(tiles: Float32Array) -> tuple[float | None, float, float]:
    """Sharpness, share of textured tiles and noise of grey tiles (n, t, t).

    Noise is the mean absolute diagonal Haar detail of the finest scale (after Donoho & Johnstone 1994, who take the
    median: that of whole grey levels is too coarse), where a texture has least. Sharpness leaves that scale to it.
    """
    if not len(tiles):
        return None, 0.0, 0.0
    n, side = tiles.shape[:2]
    stacked = tiles.reshape(n * side, side)
    across = stacked[:, ::2] - stacked[:, 1::2]
    diagonal = np.abs(across[::2] - across[1::2]).reshape(n, -1).mean(axis=1) / 2 * math.sqrt(math.pi / 2)
    noise = float(np.quantile(diagonal, 0.25))
    # Detail of a scale: what differs from its surroundings. A slope, which survives every blur, differs in nothing.
    energies = []
    for _ in range(3):
        side //= 2
        stacked = np.asarray(cv2.resize(stacked, (side, n * side), interpolation=cv2.INTER_AREA), np.float32)
        inner = (stacked - cv2.blur(stacked, (3, 3))).reshape(n, side, side)[:, 1:-1, 1:-1]
        energies.append((inner * inner).reshape(n, -1).mean(axis=1, dtype=np.float64))
    # Of white noise, each scale has a quarter of the one before; 1/9 of it is its own surroundings.
    share = 8 / 9 / 4 * noise**2
    fine = np.maximum(energies[0] - share, 0)
    coarse = energies[1] + energies[2] - share / 4 - share / 16
    textured = coarse > 0.5 + share
    if textured.sum() < min(_MIN_TEXTURED, n):
        return None, float(textured.mean()), noise
    return float(np.quantile(fine[textured] / coarse[textured], 0.75)), float(textured.mean()), noise
