"""Five kinds of surface defects, drawn the way they look on a real web: soft edges, random form within limits.

Each is a small picture in three layers which :meth:`Defect.applied` lays over the surface:
``surface x shade x (1 - alpha) + colour x alpha``. Stain and dent only shade (the texture stays visible in them),
scratch, hole and thread cover.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Kind = Literal["scratch", "stain", "hole", "thread", "dent"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Layer = NDArray[np.float32]

_FINE = 4  # drawn this much larger, then reduced by area: smooth edges
_VISIBLE = 10.0  # grey levels of change, on a surface of grey 110, from which a pixel counts as defective


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect.

    Attributes:
        kind: which of the five.
        shade: float32 (h, w), factor on the surface.
        alpha: float32 (h, w), 0..1, how far the surface is covered.
        colour: float32 (h, w), grey 0..255 of what covers it.
    """

    kind: Kind
    shade: Layer
    alpha: Layer
    colour: Layer

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where a person would see a change, bool (h, w)."""
        surface = np.full(self.shade.shape, 110.0, np.float32)
        changed: NDArray[np.bool_] = np.abs(self.applied(surface) - surface) >= _VISIBLE
        return changed

    def applied(self, surface: Layer) -> Layer:
        """The surface float32 (h, w), grey 0..255, with the defect on it."""
        return surface * self.shade * (1 - self.alpha) + self.colour * self.alpha


def make_defect(kind: Kind, rng: np.random.Generator) -> Defect:
    """Draw a defect of random size, form, direction and strength, cut to its visible extent."""
    shade, alpha, colour = _MAKERS[kind](rng)
    whole = Defect(kind, shade, alpha, colour)
    rows, columns = np.nonzero(whole.mask)
    cut = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return Defect(kind, shade[cut], alpha[cut], colour[cut])


def _scratch(rng: np.random.Generator) -> tuple[Layer, Layer, Layer]:
    # A gouge: a bright, slightly bent line with a dark lip, fading at its ends, across the direction of the joints.
    length, bend = rng.uniform(80, 125), rng.uniform(-0.12, 0.12)
    t = np.linspace(-0.5, 0.5, 60)
    angle = np.radians(rng.uniform(25, 65)) * rng.choice([-1, 1])
    x, y = t * length, (t**2 - 0.125) * bend * length
    points = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], 1)
    size = int(length) + 16
    width = rng.uniform(2.2, 3.4)
    line = _polyline(points + size / 2, width * (0.35 + 0.65 * np.cos(np.pi * t * 0.9)), size)
    lip = _polyline(points + size / 2 + width * np.array([0.6, 0.8]), np.full(60, width), size)
    strength = _clouds(size, 6, rng) * 0.15 + rng.uniform(0.8, 0.95)
    return _layer(1 - 0.4 * lip), _layer(np.clip(line * strength, 0, 1)), _flat(size, rng.uniform(200, 235))


def _stain(rng: np.random.Generator) -> tuple[Layer, Layer, Layer]:
    # Oil or water: an irregular darker patch, darkest at its rim where it dried.
    radius = rng.uniform(24, 34)
    size = int(radius * 3.4)
    distance = _distance(size, radius, rng.uniform(0.75, 1.0), rng) + _clouds(size, 9, rng) * 0.22
    body = _smooth_step(1.06 - distance, 0.13)
    rim = np.exp(-(((distance - 0.92) / 0.09) ** 2))
    depth = rng.uniform(0.42, 0.54)
    return _layer(1 - depth * body - 0.16 * rim), _flat(size, 0), _flat(size, 0)


def _hole(rng: np.random.Generator) -> tuple[Layer, Layer, Layer]:
    # A chip or puncture: dark inside, with a broken edge that catches the light on the far side.
    radius = rng.uniform(11, 16)
    size = int(radius * 4)
    distance = _distance(size, radius, rng.uniform(0.65, 1.0), rng) + _clouds(size, 3, rng) * 0.18
    inside = _smooth_step(1 - distance, 0.12)
    y = np.mgrid[:size, :size][0] / size - 0.5
    edge = np.exp(-(((distance - 1.12) / 0.12) ** 2)) * np.clip(y * 4 + 0.4, 0, 1)
    return _layer(1 + 0.45 * edge), inside * np.float32(0.95), _layer(rng.uniform(14, 34) + 6 * _clouds(size, 2, rng))


def _thread(rng: np.random.Generator) -> tuple[Layer, Layer, Layer]:
    # A fibre that fell on the web: a curly line of even width, dark or light, with a soft shadow beside it.
    steps = 90
    turn = np.cumsum(rng.normal(0, 0.09, steps)) + np.linspace(0, rng.uniform(1.5, 3.5) * rng.choice([-1, 1]), steps)
    heading = rng.uniform(0, 2 * np.pi) + turn
    pace = rng.uniform(120, 180) / steps
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * pace
    low, high = points.min(0), points.max(0)
    size = int((high - low).max()) + 24
    points += size / 2 - (low + high) / 2
    width = rng.uniform(2.0, 2.8)
    fibre = _polyline(points, np.full(steps, width), size)
    shadow = cv2.GaussianBlur(_polyline(points + np.array([2.5, 3.0]), np.full(steps, width + 1), size), (0, 0), 1.6)
    colour = rng.uniform(18, 35) if rng.random() < 0.5 else rng.uniform(225, 245)
    return _layer(1 - 0.35 * shadow), fibre * np.float32(0.95), _flat(size, colour)


def _dent(rng: np.random.Generator) -> tuple[Layer, Layer, Layer]:
    # A hollow without loss of material, flat inside: its wall towards the lamp lies in shade, the far one shines.
    radius = rng.uniform(17, 25)
    size = int(radius * 3.6)
    distance = _distance(size, radius, rng.uniform(0.75, 1.0), rng) + _clouds(size, 8, rng) * 0.06
    hollow = 1 / (1 + distance**8)
    dy, dx = np.gradient(hollow)
    angle = np.radians(rng.uniform(35, 75))  # the lamp's side, much the same for every dent on a line
    slope = dx * np.cos(angle) + dy * np.sin(angle)
    slope /= np.abs(slope).max()
    shade = 1 - rng.uniform(0.6, 0.75) * slope - 0.1 * hollow
    return _layer(shade), _flat(size, 0), _flat(size, 0)


_MAKERS: dict[Kind, Callable[[np.random.Generator], tuple[Layer, Layer, Layer]]] = {
    "scratch": _scratch,
    "stain": _stain,
    "hole": _hole,
    "thread": _thread,
    "dent": _dent,
}


def _layer(values: NDArray[Any]) -> Layer:
    return values.astype(np.float32)


def _flat(size: int, value: float) -> Layer:
    return np.full((size, size), value, np.float32)


def _polyline(points: NDArray[np.float64], widths: NDArray[np.float64], size: int) -> Layer:
    """Coverage 0..1 of a line through ``points`` (n, 2) of (x, y), ``widths`` (n,) in pixels."""
    canvas = np.zeros((size * _FINE, size * _FINE), np.uint8)
    fine = np.rint(points * _FINE).astype(int)
    for start, end, width in zip(fine[:-1], fine[1:], widths[1:], strict=True):
        cv2.line(canvas, (int(start[0]), int(start[1])), (int(end[0]), int(end[1])), 255, max(1, round(width * _FINE)))
    return _layer(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)) / np.float32(255)


def _clouds(size: int, sigma: float, rng: np.random.Generator) -> Layer:
    """Smooth noise, mean 0 and deviation 1, with structures of about ``sigma`` pixels."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), sigma)
    return _layer((noise - noise.mean()) / noise.std())


def _distance(size: int, radius: float, squeeze: float, rng: np.random.Generator) -> Layer:
    """Distance from the centre in units of ``radius``, of an ellipse in a random direction."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _layer(np.hypot(u, v / squeeze) / radius)


def _smooth_step(value: NDArray[Any], softness: float) -> Layer:
    t = np.clip(value / softness, 0, 1)
    return _layer(t * t * (3 - 2 * t))
