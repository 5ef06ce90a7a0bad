"""Charts as SVG text, for pages (``engines.pages``) and as files of their own: no plotting library on a line device.

Colours are the page's custom properties, so a chart follows it into the dark; ``standalone`` writes them out.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Blue and vermilion (Okabe & Ito) look different to colour-blind people too; words and shapes say the same again.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#18212d",
    "quiet": "#566171",
    "grid": "#dfe4ea",
    "good": "#1167a8",
    "defect": "#c04a00",
    "extra": "#0b7a5b",
}
DARK = {
    "paper": "#161c24",
    "ink": "#e8edf3",
    "quiet": "#a3afbd",
    "grid": "#313b47",
    "good": "#6cb6f5",
    "defect": "#ff9a5c",
    "extra": "#4fd0a8",
}
PAPER, INK, QUIET, GRID, GOOD, DEFECT, EXTRA = (f"var(--{name})" for name in LIGHT)

WIDTH, HEIGHT = 460, 310  # so that letters of 13 stay readable where a phone shows the chart 340 pixels wide
LEFT, RIGHT, TOP, BOTTOM = 70, 22, 46, 46
_LETTER = 6.9  # pixels of an average letter
_STYLE = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:13px"

Tick = tuple[float, str]


@dataclass(frozen=True)
class Axes:
    """Maps data to pixels; a logarithmic axis takes decades.

    Attributes:
        x_range: left and right end.
        y_range: lower and upper end.
        log_y: whether the ordinate is logarithmic.
        left: pixels left of the area, for the labels there.
        height: of the whole chart, pixels.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_y: bool = False
    left: int = LEFT
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (WIDTH - self.left - RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y_range
        if self.log_y:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.bottom - (value - low) / (high - low) * (self.bottom - TOP)

    @property
    def bottom(self) -> int:
        """Pixels from the top to the abscissa."""
        return self.height - BOTTOM

    def points(self, points: Sequence[tuple[float, float]]) -> str:
        """``d`` of a path along them."""
        return "M" + "L".join(f"{self.x(px):.1f},{self.y(py):.1f}" for px, py in points)

    def line(self, points: Sequence[tuple[float, float]], colour: str, more: str = "stroke-width='2.2'") -> str:
        """A line along them."""
        return f"<path d='{self.points(points)}' fill='none' stroke='{colour}' {more}/>"

    def area(self, points: Sequence[tuple[float, float]], colour: str) -> str:
        """What lies below a line."""
        return (
            f"<path d='{self.points(points)}Z' fill='{colour}' fill-opacity='.3' stroke='{colour}' stroke-width='1.2'/>"
        )

    def band(self, low: float, high: float) -> str:
        """A stretch of the abscissa, for instance an interval; cut to what the chart shows."""
        low, high = (min(max(value, self.x_range[0]), self.x_range[1]) for value in (low, high))
        return (
            f"<rect x='{self.x(low):.1f}' y='{TOP}' width='{self.x(high) - self.x(low):.1f}' "
            f"height='{self.bottom - TOP}' fill='{INK}' fill-opacity='.09'/>"
        )

    def vertical(self, value: float, label: str) -> str:
        """A dashed line at ``value`` with its name."""
        x = self.x(value)
        anchor, dx = ("end", -6) if x > WIDTH * 0.6 else ("start", 6)
        return (
            f"<path d='M{x:.1f},{TOP}V{self.bottom}' stroke='{INK}' stroke-width='1.6' stroke-dasharray='6 4'/>"
            + text(x + dx, TOP + 13, label, INK, anchor, bold=True, halo=True)
        )

    def frame(
        self, title: str, x_label: str, y_label: str, y_ticks: Sequence[Tick], x_ticks: Sequence[Tick] | None = None
    ) -> str:
        """Title, axes, grid and labels."""
        right, bottom = WIDTH - RIGHT, self.bottom
        parts = [text(4, 17, title, INK, bold=True, size=15)]
        for value, label in y_ticks:
            y = self.y(value)
            parts.append(f"<path d='M{self.left},{y:.1f}H{right}' stroke='{GRID}'/>")
            parts.append(text(self.left - 8, y + 4, label, QUIET, "end"))
        for value, label in nice_ticks(*self.x_range) if x_ticks is None else x_ticks:
            x = self.x(value)
            parts.append(f"<path d='M{x:.1f},{bottom}v5' stroke='{QUIET}'/>")
            parts.append(text(x, bottom + 19, label, QUIET, "middle"))
        parts.append(f"<path d='M{self.left},{bottom}H{right}' stroke='{QUIET}'/>")
        parts.append(text((self.left + right) / 2, self.height - 8, x_label, INK, "middle"))
        if y_label:
            parts.append(
                f"<text transform='translate(13,{(TOP + bottom) / 2:.0f}) rotate(-90)' fill='{INK}' "
                f"text-anchor='middle'>{escape(y_label)}</text>"
            )
        return "".join(parts)


def svg(label: str, parts: Sequence[str], height: int = HEIGHT) -> str:
    """The chart.

    Args:
        label: what it shows, for who does not see it.
        parts: SVG elements.
        height: pixels; its width is ``WIDTH``.
    """
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' "
        f"role='img' aria-label='{escape(label, quote=True)}' style=\"{_STYLE}\">{''.join(parts)}</svg>"
    )


def standalone(charts: Sequence[str]) -> str:
    """Charts below one another as one SVG file, light."""
    heights = [int(re.search(r"height='(\d+)'", chart)[1]) for chart in charts]  # type: ignore[index] # svg() wrote it
    placed = [chart.replace("<svg ", f"<svg y='{sum(heights[:i])}' ", 1) for i, chart in enumerate(charts)]
    whole = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {sum(heights)}' width='{WIDTH}' "
        f"height='{sum(heights)}'><rect width='{WIDTH}' height='{sum(heights)}' fill='{PAPER}'/>{''.join(placed)}"
        "</svg>\n"
    )
    return re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], whole)


def legend(entries: Sequence[tuple[str, str]], left: float = 4) -> str:
    """What the colours stand for: (colour, text) each, in a row below the title."""
    parts = []
    x = left
    for colour, label in entries:
        parts.append(f"<rect x='{x:.0f}' y='26' width='10' height='10' rx='2' fill='{colour}'/>")
        parts.append(text(x + 15, 36, label, QUIET))
        x += 15 + _LETTER * len(label) + 14
    return "".join(parts)


def text(
    x: float,
    y: float,
    words: str,
    colour: str,
    anchor: str = "start",
    *,
    bold: bool = False,
    halo: bool = False,
    size: int | None = None,
) -> str:
    """Words.

    Args:
        x: pixels.
        y: of their base line, pixels.
        words: text.
        colour: theirs.
        anchor: start, middle or end.
        bold: whether they matter more.
        halo: whether they lie over lines, from which a rim sets them off.
        size: of the letters, pixels; None: the chart's.
    """
    more = " font-weight='600'" if bold else ""
    more += f" stroke='{PAPER}' stroke-width='3.5' stroke-linejoin='round' paint-order='stroke'" if halo else ""
    more += f" style='font-size:{size}px'" if size else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' text-anchor='{anchor}'{more}>{escape(words)}</text>"


def staircase(false: Sequence[float], found: Sequence[float]) -> list[tuple[float, float]]:
    """Points of a ROC curve, up before right, from shares of good and defective above falling thresholds."""
    points: list[tuple[float, float]] = []
    for x, y in zip(false, found, strict=True):
        if points:
            points.append((float(x), points[-1][1]))
        points.append((float(x), float(y)))
    return points


FIFTHS: list[Tick] = [(v / 5, f"{v * 20} %") for v in range(6)]


def nice_ticks(low: float, high: float, n: int = 5) -> list[Tick]:
    """About ``n`` round numbers between ``low`` and ``high``."""
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    last = math.floor(high / step)
    digits = max(0, -math.floor(math.log10(step)) + (1 if step / power == 2.5 else 0))
    return [(i * step, f"{i * step:,.{digits}f}") for i in range(first, last + 1)]


def integer_ticks(top: int) -> list[Tick]:
    """Round numbers from 0 to ``top``, whole ones."""
    return [(value, label) for value, label in nice_ticks(0, max(top, 1)) if value == round(value)]
