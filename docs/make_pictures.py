"""Draw the pictures of choosing.md and tutorial.md: ``python docs/make_pictures.py [FOLDER]``, docs/images if not told.

The surfaces are CC0 photographs that scikit-image carries (bricks, gravel), the defects those of the demo. Where a
picture is computed and not photographed, the page says so.
"""

import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, Polygon, Rectangle
from numpy.typing import NDArray
from PIL import Image

from engines.bundle import read_bundle
from engines.defects import KINDS, make_defect
from engines.engine import EngineSettings
from engines.judging import Judging
from engines.opening import open_engine
from engines.tiling import Tiler
from station.calibration import calibrate_good
from station.commands.demo import BUNDLE, FALSE_ALARM_RATE
from station.demo.sample_line import NOISE, SampleLine
from station.demo.textures import belt
from station.demo.training_images import good_frames
from station.inspection import Inspector
from station.settings import JudgeSettings

IMAGES = Path(__file__).with_name("images")
INK, PAPER, ACCENT, SECOND, LIGHT = "#1a1a2e", "#ffffff", "#3949ab", "#c2410c", "#f5b301"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "figure.facecolor": PAPER,
}
Grey = NDArray[np.float32]


def surface(height: int = 256, width: int = 256, top: int = 60) -> Grey:
    """A piece of the demo's brick wall, float32, grey 0..255."""
    rows = belt("line")[top : top + height, :width]
    return rows.astype(np.float32)


def planted(seed: int = 4) -> Grey:
    """The surface with a scratch and a hole."""
    rng = np.random.default_rng(seed)
    image = surface().copy()
    for kind, (y, x) in (("scratch", (40, 60)), ("hole", (170, 165))):
        defect = make_defect(kind, rng)
        height, width = defect.shade.shape
        place = np.s_[y : y + height, x : x + width]
        image[place] = defect.applied(image[place])
    return image


def panels(titles: list[str], size: float = 2.9, tall: float = 3.3) -> tuple[Figure, list[Axes]]:
    """A row of pictures without axes."""
    figure = Figure(figsize=(size * len(titles), tall), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, len(titles))))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    return figure, axes


def show(ax: Axes, image: Grey) -> None:
    """A grey picture, every pixel seen."""
    ax.imshow(np.clip(image, 0, 255), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def pixels() -> Figure:
    """One defect under cameras of falling resolution."""
    sides = (256, 96, 48, 24)
    whole = planted()
    hole = 30  # pixels across in `whole`, about
    figure, axes = panels(
        [f"hole {hole * side / 256:.0f} pixels wide,\nscratch {3 * side / 256:.1g}" for side in sides]
    )
    for ax, side in zip(axes, sides, strict=True):
        show(ax, cv2.resize(whole, (side, side), interpolation=cv2.INTER_AREA))
    return figure


def patches() -> Figure:
    """What one patch sees at three scales."""
    image = planted()
    figure, axes = panels(
        ["--scale 1: 16 patches", "--scale 2: 64 patches", "--scale 1 --stride 32: 49 patches"], 3.4, 3.9
    )
    for ax, side, stride in zip(axes, (64, 32, 64), (64, 32, 32), strict=True):
        show(ax, image)
        for y in range(0, 257 - side, stride):
            for x in range(0, 257 - side, stride):
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor=LIGHT, linewidth=1))
        start = stride * (128 // stride)
        ax.add_patch(Rectangle((start - 0.5, start - 0.5), side, side, fill=False, edgecolor=SECOND, linewidth=3))
    return figure


def blur() -> Figure:
    """The same web at four exposures."""
    whole = planted()
    lengths = (0, 1, 4, 12)
    figure, axes = panels([f"{n} pixel{'s' * (n != 1)} of blur" if n else "standing still" for n in lengths])
    for ax, n in zip(axes, lengths, strict=True):
        kernel = np.ones((n + 1, 1), np.float32)
        kernel[[0, -1]] = 0.5 if n else 1  # the way begins and ends in the middle of a pixel
        kernel /= kernel.sum()
        show(ax, cv2.filter2D(whole, -1, kernel))
    return figure


def relief() -> tuple[Grey, Grey]:
    """Height (pixels) and reflectance (0..1) of a grain with a scratch, a groove, and a stain, which has no relief."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("needs scikit-image: pip install 'cbigan-station[demo]'")
    photograph = cv2.imread(str(Path(spec.origin).parent / "data" / "gravel.png"), cv2.IMREAD_GRAYSCALE)
    if photograph is None:
        raise SystemExit("scikit-image's gravel.png is missing; reinstall scikit-image")
    grain = cv2.GaussianBlur(photograph.astype(np.float32), (0, 0), 2.2)[:320, :320]
    height = (grain - grain.mean()) / grain.std() * 0.42
    y, x = np.mgrid[:320, :320].astype(np.float32)
    away = np.abs((x - 70) - 0.55 * (y - 40)) / np.hypot(1, 0.55)
    along = (y > 40) & (y < 215)
    height -= np.where(along, 2.6 * np.exp(-((away / 2.2) ** 2)), 0).astype(np.float32)
    stain = 1 / (1 + np.exp((np.hypot((x - 225) / 1.25, y - 225) - 38) / 4))
    return height, (0.62 * (1 - 0.3 * stain)).astype(np.float32)


def lit(height: Grey, reflectance: Grey, kind: str) -> Grey:
    """How a matt surface with a little gloss looks from above, by the direction its light comes from."""
    steep_y, steep_x = np.gradient(height)
    upright = 1 / np.sqrt(1 + steep_x**2 + steep_y**2)
    if kind == "diffuse":  # from everywhere: slopes hardly matter
        light = reflectance * (0.5 + 0.5 * upright) * 300
    elif kind == "dark field":  # from the right, 12 degrees above the surface
        angle = np.deg2rad(12)
        light = reflectance * np.clip((np.sin(angle) - np.cos(angle) * steep_x) * upright, 0, None) * 420
    else:  # bright field: through the lens; what is level shines back, what leans does not
        light = (0.25 * reflectance * upright + 0.55 * np.exp(-((1 - upright) / 0.025))) * 300
    noise = np.random.default_rng(0).normal(0, 2, height.shape)
    return (light + noise).astype(np.float32)


def lights() -> Figure:
    """One surface under three lights."""
    kinds = ("diffuse", "dark field", "bright field")
    says = (
        "the stain shows, the scratch hardly",
        "the scratch shows, the stain hardly",
        "whatever is not level is dark",
    )
    figure, axes = panels([f"{kind}:\n{words}" for kind, words in zip(kinds, says, strict=True)], 3.6, 4.2)
    height, reflectance = relief()
    for ax, kind in zip(axes, kinds, strict=True):
        show(ax, lit(height, reflectance, kind))
    return figure


def set_ups() -> Figure:
    """Where the lamps stand."""
    figure = Figure(figsize=(12.4, 3.6), layout="constrained")
    for ax, kind in zip(figure.subplots(1, 4), ("diffuse", "dark field", "bright field", "back light"), strict=True):
        ax.set(xlim=(-5.6, 5.6), ylim=(-2.2, 7.2), aspect="equal", title=kind)
        ax.set_axis_off()
        ax.add_patch(Rectangle((-4.5, -0.35), 9, 0.35, color="#9aa0b5"))
        ax.add_patch(Rectangle((-0.8, 5.4), 1.6, 1.4, color=INK))
        ax.add_patch(Rectangle((-0.5, 4.7), 1, 0.7, color="#4b5170"))
        LAMPS[kind](ax)
    return figure


def _ray(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": LIGHT, "lw": 1.8})


def _dome(ax: Axes) -> None:
    angles = np.deg2rad(np.concatenate([np.arange(8, 76, 4), np.arange(104, 173, 4)]))
    ax.plot(4.2 * np.cos(angles[:17]), 4.2 * np.sin(angles[:17]), color=ACCENT, lw=5)
    ax.plot(4.2 * np.cos(angles[17:]), 4.2 * np.sin(angles[17:]), color=ACCENT, lw=5)
    for degrees in (15, 40, 65, 115, 140, 165):
        direction = np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
        _ray(ax, tuple(4 * direction), tuple(0.7 * direction))


def _grazing(ax: Axes) -> None:
    for side in (-1, 1):
        ax.add_patch(
            Polygon([(side * 4.9, 0.4), (side * 4.1, 1.5), (side * 4.4, 1.7), (side * 5.2, 0.6)], color=ACCENT)
        )
        for reach in (0.2, 1.2, 2.2):
            _ray(ax, (side * 4.2, 1.0), (side * reach, 0.05))


def _coaxial(ax: Axes) -> None:
    ax.plot([-1.1, 1.1], [2.0, 4.2], color="#6b7280", lw=3)
    ax.add_patch(Rectangle((3.4, 2.1), 0.7, 2, color=ACCENT))
    for shift in (-0.6, 0.0, 0.6):
        ax.plot([3.4, shift], [3.1 + shift, 3.1 + shift], color=LIGHT, lw=1.8)
        _ray(ax, (shift, 3.1 + shift), (shift, 0.05))


def _behind(ax: Axes) -> None:
    ax.add_patch(Rectangle((-3.4, -1.9), 6.8, 0.5, color=ACCENT))
    for x in (-2.4, -1.2, 0, 1.2, 2.4):
        _ray(ax, (x, -1.4), (x * 0.55, 2.6))


LAMPS: dict[str, Callable[[Axes], None]] = {
    "diffuse": _dome,
    "dark field": _grazing,
    "bright field": _coaxial,
    "back light": _behind,
}


def geometry() -> Figure:
    """Sensor, lens, distance, field of view."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-3.2, 11.2), ylim=(-3.2, 3.2), aspect="equal")
    ax.set_axis_off()
    ax.plot([-2, -2], [-0.6, 0.6], color=ACCENT, lw=6)
    ax.add_patch(Ellipse((0, 0), 0.5, 2.2, color="#9db2f2"))
    ax.plot([9, 9], [-2.7, 2.7], color=SECOND, lw=6)
    for side in (-1, 1):
        ax.plot([-2, 9], [side * 0.6, -side * 2.7], color="#9aa0b5", lw=1)
    ax.add_patch(Circle((9, 0.7), 0.16, color=INK))
    ax.text(9.35, 0.7, "smallest\ndefect d", va="center")
    ax.text(-2.2, 0.95, "sensor:\ncolumns × pitch p", ha="center", va="bottom", color=ACCENT)
    ax.text(9, 2.85, "field of view W = m · columns", ha="center", va="bottom", color=SECOND)
    ax.text(0, 1.25, "lens f", ha="center")
    for start, end, words in ((0, 9, "working distance D"), (-2, 0, "β D")):
        ax.annotate("", (end, -2.1), (start, -2.1), arrowprops={"arrowstyle": "<|-|>", "color": INK, "lw": 1.2})
        ax.text((start + end) / 2, -2.35, words, ha="center", va="top")
    return figure


def data_set() -> Figure:
    """A good picture of the demo's line and one of each kind of defect, its mask outlined."""
    line = SampleLine(3, 700)
    first = {planted.kind: planted.frames(line.n_frames) for planted in reversed(line.planted)}
    figure, axes = panels(["good", *KINDS], 1.9, 2.2)
    show(axes[0], SampleLine(3, 1, defects=False).frame(0)[..., 0])
    for ax, kind in zip(axes[1:], KINDS, strict=True):
        middle = first[kind][len(first[kind]) // 2]
        show(ax, line.frame(middle)[..., 0])
        ax.contour(
            cv2.dilate(line.mask(middle).astype(np.uint8), np.ones((9, 9))), [0.5], colors=[LIGHT], linewidths=1.2
        )
    return figure


SIZES = (2, 3, 4, 6, 8, 12, 16, 24)  # diameters of a dark spot, camera pixels
CONTRASTS = (0.3, 0.6, 1.0)  # how much of the light it takes away in its middle
QUARTERS = [np.arange(64).reshape(8, 8) % 4 == quarter for quarter in range(4)]  # of a frame's patches


def margins() -> dict[float, list[float]]:
    """Median score of a dark spot over the threshold, by its contrast and for each of SIZES; the demo's own engine.

    64 spots for each, one on every patch of a good frame, in four frames so that most of each is good, and noise as the
    demo's camera has it.
    """
    bundle = read_bundle(BUNDLE)
    engine = open_engine(bundle, EngineSettings())
    tiler = Tiler(bundle.manifest.preprocessing)
    inspector = Inspector(engine, tiler, Judging.of(bundle.manifest), JudgeSettings())
    good = [inspector.inspect(np.repeat(grey[..., None], 3, axis=2)).score for grey in good_frames(60)]
    threshold = calibrate_good(np.array(good), FALSE_ALARM_RATE)[1].threshold
    rng = np.random.default_rng(0)
    found: dict[float, list[float]] = {}
    for contrast in CONTRASTS:
        found[contrast] = []
        for size in SIZES:
            scores: list[float] = []
            for here in QUARTERS:
                frame = surface() * (1 - contrast * spots(size, rng, here)) + rng.normal(0, NOISE, (256, 256))
                picture = np.repeat(np.clip(frame, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
                scores += inspector.inspect(picture).patch_scores[here.ravel()].tolist()
            found[contrast].append(float(np.median(scores) / threshold))
    engine.close()
    return found


def spots(diameter: float, rng: np.random.Generator, here: NDArray[np.bool_]) -> Grey:
    """0..1, float32 (256, 256): a soft spot in those squares of 32 x 32 pixels that ``here``, (8, 8), says.

    Each is a patch of the demo's engine.
    """
    y, x = np.mgrid[:256, :256].astype(np.float32) % 32
    place = 16 + np.kron(rng.uniform(-3, 3, (2, 8, 8)), np.ones((1, 32, 32)))
    away = np.hypot(y + 0.5 - place[0], x + 0.5 - place[1])
    spot = 1 / (1 + np.exp((away - diameter / 2) / 0.35))
    return (spot * np.kron(here, np.ones((32, 32)))).astype(np.float32)


def size() -> Figure:
    """Score of a spot by its size and contrast."""
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    ax = figure.subplots()
    for (contrast, found), style in zip(margins().items(), ("o-", "s-", "^-"), strict=True):
        ax.plot(
            SIZES,
            found,
            style,
            color={0.3: "#7a86c9", 0.6: ACCENT, 1.0: INK}[contrast],
            label=f"takes {contrast:.0%} of the light",
        )
    ax.axhline(1, color=SECOND, ls="--", lw=1.6)
    ax.text(SIZES[-1], 1.02, "threshold", color=SECOND, ha="right", va="bottom")
    ax.set(xscale="log", xlabel="diameter of the spot, camera pixels", ylabel="score / threshold", ylim=(0, None))
    ax.set_xticks(SIZES, [str(s) for s in SIZES])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, loc="upper left")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "choosing-geometry": geometry,
    "choosing-pixels": pixels,
    "choosing-blur": blur,
    "choosing-set-ups": set_ups,
    "choosing-lights": lights,
    "choosing-patches": patches,
    "choosing-size": size,
    "tutorial-pictures": data_set,
}


def png(figure: Figure) -> bytes:
    """The figure in 64 colours of grey and ink: small, and sharp enough for a page."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=110, bbox_inches="tight", pad_inches=0.08)
    out = io.BytesIO()
    with Image.open(raw) as picture:
        picture.convert("RGB").quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            out, "PNG", optimize=True
        )
    return out.getvalue()


def main(folder: Path = IMAGES) -> None:
    """Write them all."""
    with mpl.rc_context(STYLE):
        for name, draw in PICTURES.items():
            (folder / f"{name}.png").write_bytes(png(draw()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
