"""Formulas of docs/choosing.md, and the tables there that are made with them: ``python docs/make_choosing.py``.

Lengths are millimetres unless a name says otherwise, speeds metres a second, times seconds.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from docs.tables import fill, markdown
from engines.manifest import Preprocessing
from engines.tiling import Tiler

PAGE = Path(__file__).with_name("choosing.md")
PATCH = 64  # side of a texture's patches, pixels: the networks' (train/networks.py)
STANDARD_LENSES = (4, 6, 8, 12, 16, 25, 35, 50, 75)  # focal lengths that C-mount lenses are sold with, mm
# One thread of a server's core, width 8, ONNX Runtime: decision 71 and docs/performance.md.
MS_PER_PATCH = {"without the locator": 59 / 64, "with the locator": 82 / 64}


def scale_of_view(smallest_defect: float, pixels: float) -> float:
    """Millimetres of material on one pixel, so that the smallest defect covers ``pixels`` of them."""
    return smallest_defect / pixels


def magnification(pitch_um: float, mm_per_pixel: float) -> float:
    """β: size on the sensor over size on the material.

    Args:
        pitch_um: side of a pixel of the sensor, micrometres.
        mm_per_pixel: millimetres of material on one pixel.
    """
    return pitch_um / 1000 / mm_per_pixel


def focal_length(working_distance: float, beta: float) -> float:
    """Focal length of a thin lens that stands ``working_distance`` from the material and magnifies by ``beta``."""
    return working_distance * beta / (1 + beta)


def working_distance(focal: float, beta: float) -> float:
    """Where a lens has to stand to magnify by ``beta``; the inverse of :func:`focal_length`."""
    return focal * (1 + beta) / beta


def longest_exposure(speed: float, mm_per_pixel: float, blur: float = 1.0) -> float:
    """Exposure in which the material moves by ``blur`` pixels; infinite for material that stands still."""
    return blur * mm_per_pixel / (speed * 1000) if speed else math.inf


def frames_per_second(speed: float, height: float, looks: float = 2.0) -> float:
    """Frame rate at which a place is seen ``looks`` times while it passes a view of this height."""
    return speed * 1000 * looks / height


def cameras_across(width: float, view: float, overlap: float = 0.05) -> int:
    """Cameras side by side over the width, each view overlapping its neighbour's by a share of itself."""
    return max(1, math.ceil((width - overlap * view) / (view * (1 - overlap)) - 1e-9))


def depth_of_field(f_number: float, pitch_um: float, beta: float) -> float:
    """Depth in which a point of the material stays within one pixel."""
    return 2 * f_number * (pitch_um / 1000) * (1 + beta) / beta**2


def airy_pixels(f_number: float, pitch_um: float, beta: float, wavelength_um: float = 0.55) -> float:
    """Diameter of the smallest spot that the lens can make, in pixels: 2.44 λ N (1 + β)."""
    return 2.44 * wavelength_um * f_number * (1 + beta) / pitch_um


def patches(width: int, height: int, scale: float = 1.0, stride: int = PATCH) -> int:
    """How many patches the station cuts a frame into, by the very code that does it."""
    preprocessing = Preprocessing(colour="gray", scale=scale, patch_size=PATCH, stride=stride)
    return Tiler(preprocessing).grid((height, width)).n


@dataclass(frozen=True)
class Line:
    """What one knows of a line before buying anything.

    Attributes:
        smallest: least extent of the smallest defect that matters.
        pixels: how many pixels it shall cover.
        width: of the web or of the part.
        speed: metres a second.
        distance: room between lens and material.
        columns, rows: of the camera.
        pitch_um: of its sensor, micrometres.
    """

    material: str
    defect: str
    smallest: float
    pixels: float
    width: float
    speed: float
    distance: float
    columns: int = 2448
    rows: int = 2048
    pitch_um: float = 3.45

    @property
    def mm_per_pixel(self) -> float:
        """On the material."""
        return scale_of_view(self.smallest, self.pixels)

    @property
    def view(self) -> tuple[float, float]:
        """Across and along the web."""
        return self.columns * self.mm_per_pixel, self.rows * self.mm_per_pixel

    @property
    def beta(self) -> float:
        """Magnification."""
        return magnification(self.pitch_um, self.mm_per_pixel)

    @property
    def lens(self) -> int:
        """The standard focal length next to the wanted one."""
        wanted = focal_length(self.distance, self.beta)
        return min(STANDARD_LENSES, key=lambda focal: abs(math.log(focal / wanted)))


LINES = (
    Line("cotton, woven", "missing thread", 1.0, 4, 1600, 0.5, 800),
    Line("leather, a hide", "pinhole", 1.0, 8, 900, 0.2, 800),
    Line("wood, boards", "crack", 1.0, 4, 200, 1.5, 600),
    Line("steel strip", "scratch", 0.3, 3, 1000, 3.0, 400),
    Line("paper web", "speck, hole", 1.6, 8, 800, 10.0, 600),
)


def number(value: float) -> str:
    """Three figures, no exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _time(seconds: float) -> str:
    return f"{number(seconds * 1000)} ms" if seconds >= 1e-3 else f"{number(seconds * 1e6)} µs"


def optics_table() -> str:
    """The worked example: five lines, one camera."""
    rows = [
        ["smallest defect", *(f"{line.defect}, {number(line.smallest)} mm" for line in LINES)],
        ["width, speed", *(f"{number(line.width)} mm, {number(line.speed)} m/s" for line in LINES)],
        ["pixels on the defect *n*", *(number(line.pixels) for line in LINES)],
        ["**mm per pixel** *m = d / n*", *(number(line.mm_per_pixel) for line in LINES)],
        [
            "**field of view** *m · columns* × *m · rows*",
            *(" × ".join(f"{side:.0f}" for side in line.view) + " mm" for line in LINES),
        ],
        ["**cameras** side by side, 5 % overlap", *(str(cameras_across(line.width, line.view[0])) for line in LINES)],
        ["room for the lens *D*", *(f"{number(line.distance)} mm" for line in LINES)],
        ["magnification *β = pitch / m*", *(number(line.beta) for line in LINES)],
        [
            "focal length *f = D β / (1 + β)*",
            *(f"{number(focal_length(line.distance, line.beta))} mm" for line in LINES),
        ],
        [
            "**lens on sale, and where it stands** *f (1 + β) / β*",
            *(f"{line.lens} mm at {working_distance(line.lens, line.beta):.0f} mm" for line in LINES),
        ],
        [
            "depth of field at f/4 *2 N p (1 + β) / β²*",
            *(f"{number(depth_of_field(4, line.pitch_um, line.beta))} mm" for line in LINES),
        ],
        [
            "smallest spot at f/4, f/8 *2.44 λ N (1 + β)*",
            *(
                " and ".join(number(airy_pixels(n, line.pitch_um, line.beta)) for n in (4, 8)) + " pixels"
                for line in LINES
            ),
        ],
        [
            "**longest exposure**, 1 pixel of blur *m / v*",
            *(_time(longest_exposure(line.speed, line.mm_per_pixel)) for line in LINES),
        ],
        [
            "**frames a second**, every place seen twice *2 v / height*",
            *(number(frames_per_second(line.speed, line.view[1])) for line in LINES),
        ],
    ]
    return markdown(["", *(line.material for line in LINES)], rows)


def patches_table() -> str:
    """What scale and stride cost on a frame of 5 megapixels."""
    head = ["`--scale`", "`--stride`", "a patch covers", "patches", *(f"one core, {name}" for name in MS_PER_PATCH)]
    rows = []
    for scale, stride in ((1.0, 64), (1.0, 32), (0.5, 64), (0.5, 32), (0.25, 64), (2.0, 64)):
        n = patches(2448, 2048, scale, stride)
        seconds = [f"{number(n * ms / 1000)} s" for ms in MS_PER_PATCH.values()]
        rows.append([number(scale), str(stride), f"{number(PATCH / scale)} camera pixels", f"{n:,}", *seconds])
    return markdown(head, rows)


TABLES = {"optics": optics_table, "patches": patches_table}


def filled(page: str) -> str:
    """The page with its tables made anew."""
    return fill(page, ((name, table()) for name, table in TABLES.items()), PAGE)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
