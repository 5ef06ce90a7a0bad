"""The sample line: a web of bricks runs under a camera, with defects planted on it and light that changes.

Everything follows from the seed. The planted defects (what, where, in which frames) are known to whoever makes the
line - the demo, to count what was found - and the station gets none of it: only frames.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from engines.defects import KINDS, Defect, Kind, make_defect
from engines.engine import UInt8Array
from engines.geometry import Box
from station.camera.source import CameraError, Picture
from station.demo.textures import WIDTH, DemoError, Part, belt

HEIGHT = 256  # of a frame, pixels
STEP = 24  # pixels that the web moves from frame to frame
PITCH = 480  # rows of web from one planted defect to the next: more than a frame, so good frames lie between
JITTER = 40  # rows by which a defect is planted before or after its place
MARGIN = 6  # pixels that a defect keeps from the sides of the web
DEFAULT_SEED, DEFAULT_FRAMES = 0, 300
_COUNT = re.compile(r"[0-9]{1,7}")
NOISE = 2.5  # deviation of the sensor's noise, grey levels


@dataclass(frozen=True, slots=True)
class Light:
    """Light of one frame: ``gain`` overall, changing by ``across`` and ``along`` from side to side."""

    gain: float
    across: float
    along: float

    def field(self) -> NDArray[np.float32]:
        """Factor on every pixel, float32 (256, 256)."""
        x = np.linspace(-0.5, 0.5, WIDTH, dtype=np.float32)[None]
        y = np.linspace(-0.5, 0.5, HEIGHT, dtype=np.float32)[:, None]
        return (self.gain * (1 + self.across * x + self.along * y)).astype(np.float32)


# What the lamp does, at most; training images and line keep to the same range.
GAIN, SLOPE = 0.12, 0.10


@dataclass(frozen=True, slots=True)
class Planted:
    """A defect on the web.

    Attributes:
        defect: its picture.
        x: its left side, pixels from the left side of the web.
        y: its upper side in the frame with index 0; negative, as it has yet to come.
    """

    defect: Defect
    x: int
    y: int

    @property
    def kind(self) -> Kind:
        """Which kind of defect."""
        return self.defect.kind

    def box(self, index: int) -> Box | None:
        """Where frame ``index`` (from 0) shows it, cut to the frame; None if it does not."""
        h, w = self.defect.shade.shape
        top = self.y + index * STEP
        visible_top, visible_bottom = max(top, 0), min(top + h, HEIGHT)
        return Box(self.x, visible_top, w, visible_bottom - visible_top) if visible_bottom > visible_top else None

    def frames(self, n_frames: int) -> range:
        """Indices of the frames among the first ``n_frames`` that show it, wholly or in part."""
        first = max(-((self.y + self.defect.shade.shape[0] - 1) // STEP), 0)
        last = (HEIGHT - 1 - self.y) // STEP
        return range(first, min(last + 1, n_frames))


class SampleLine:
    """A line of ``n_frames`` frames of 256 x 256 pixels, the same for the same seed.

    Args:
        seed: decides defects, light and noise.
        n_frames: length of the run.
        part: which half of the photograph the web is made of.
        defects: False for a web with nothing planted on it.
    """

    def __init__(self, seed: int, n_frames: int, part: Part = "line", defects: bool = True) -> None:
        self.n_frames = n_frames
        self._seed = seed
        self._belt = belt(part)
        rng = np.random.default_rng([seed, 1])
        self._start = int(rng.integers(len(self._belt)))
        self._phases = rng.uniform(0, 2 * np.pi, 4)
        self.planted: tuple[Planted, ...] = tuple(self._plant(rng)) if defects else ()

    def _plant(self, rng: np.random.Generator) -> list[Planted]:
        """One defect every PITCH rows, the kinds in shuffled rounds; each passes wholly before the last frame."""
        planted: list[Planted] = []
        kinds: list[Kind] = []
        y = -PITCH // 2
        while True:
            if not kinds:
                kinds = [KINDS[i] for i in rng.permutation(len(KINDS))]
            defect = make_defect(kinds.pop(), rng)
            h, w = defect.shade.shape
            top = y - h + int(rng.integers(-JITTER, JITTER + 1))
            if top + (self.n_frames - 1) * STEP < HEIGHT // 2:
                return planted
            planted.append(Planted(defect, int(rng.integers(MARGIN, WIDTH - w - MARGIN + 1)), top))
            y -= PITCH

    def light(self, index: int) -> Light:
        """Light of frame ``index``: slow drifts of different periods."""
        a, b, c, d = np.sin(self._phases + 2 * np.pi * index / np.array([170.0, 61.0, 240.0, 130.0]))
        return Light(1 + GAIN * (0.75 * a + 0.25 * b), SLOPE * c, SLOPE * d)

    def surface(self, index: int) -> NDArray[np.float32]:
        """The web under the camera before light and sensor, float32 (256, 256), grey 0..255."""
        rows = (self._start - index * STEP + np.arange(HEIGHT)) % len(self._belt)
        web = self._belt[rows]
        for planted in self.planted:
            if (box := planted.box(index)) is not None:
                _lay(planted, web, box, index)
        return web

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Where frame ``index`` shows a defect, bool (256, 256)."""
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        for planted in self.planted:
            if (box := planted.box(index)) is not None:
                above = box.y - planted.y - index * STEP
                mask[box.y : box.bottom, box.x : box.right] |= planted.defect.mask[above : above + box.h]
        return mask

    def frame(self, index: int) -> UInt8Array:
        """Frame ``index``, from 0: uint8 (256, 256, 3), BGR (the camera is a grey one, so three equal channels)."""
        noise = np.random.default_rng([self._seed, 2, index]).standard_normal((HEIGHT, WIDTH), dtype=np.float32)
        grey = self.surface(index) * self.light(index).field() + NOISE * noise
        return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _lay(planted: Planted, web: NDArray[np.float32], box: Box, index: int) -> None:
    above = box.y - planted.y - index * STEP
    part = np.s_[above : above + box.h]
    d = planted.defect
    visible = Defect(d.kind, d.shade[part], d.alpha[part], d.colour[part])
    area = np.s_[box.y : box.bottom, box.x : box.right]
    web[area] = visible.applied(web[area])


def open_sample_line(name: str) -> "SampleLineSource":
    """The sample line as a camera, from what follows ``demo:`` in its URL.

    Args:
        name: ``brick``, then ``?seed=N`` and ``&frames=N`` in any order, both optional.

    Raises:
        CameraError: no such line, or an option that it does not have.
    """
    line, _, query = name.partition("?")
    options = {"seed": DEFAULT_SEED, "frames": DEFAULT_FRAMES}
    given = dict(parse_qsl(query, keep_blank_values=True))
    if line != "brick" or not given.keys() <= options.keys() or not all(map(_COUNT.fullmatch, given.values())):
        raise CameraError(f"demo:{name}: the sample line is demo:brick, or for instance demo:brick?seed=0&frames=300")
    options |= {key: int(value) for key, value in given.items()}
    return SampleLineSource(options["seed"], options["frames"])


class SampleLineSource:
    """A camera over the sample line. It ends with the line; frames are named ``frame 1``, ``frame 2`` ..."""

    live = False

    def __init__(self, seed: int, n_frames: int) -> None:
        self._seed, self._n_frames = seed, n_frames
        self._line: SampleLine | None = None
        self._done = 0

    def open(self) -> None:
        """Start the line from its first frame.

        Raises:
            CameraError: scikit-image, whose photograph the web is made of, is not installed.
        """
        try:
            self._line = SampleLine(self._seed, self._n_frames)
        except DemoError as error:
            raise CameraError(str(error)) from error
        self._done = 0

    def read(self) -> Picture | None:
        """The next frame; None when the line has stopped."""
        if self._line is None:
            raise CameraError("the sample line is not open")
        if self._done >= self._n_frames:
            return None
        self._done += 1
        return Picture(self._line.frame(self._done - 1), f"frame {self._done}")

    def close(self) -> None:
        """Stop the line."""
        self._line = None
