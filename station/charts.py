"""The charts of a calibration, as SVG text; ``engines.plots`` has their look."""

import base64
import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.plots import (
    DEFECT,
    FIFTHS,
    GOOD,
    GRID,
    INK,
    PAPER,
    QUIET,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    integer_ticks,
    legend,
    nice_ticks,
    staircase,
    svg,
    text,
)
from station.calibration import Tail, odds, written
from station.survey import Places

Values = NDArray[np.float64]

_MAX_DOTS = 300
_MAX_CELLS = 48
"""Columns or rows of the map of places; more are joined, for a page need not hold thousands of numbers."""
_ROOM = 0.5
"""The brightest colour stands for this share of the way to the highest-scoring frames at least: even looks even."""
_BINS = 40


def histogram(
    good: Values,
    defect: Values | None,
    threshold: float,
    tail: Tail | None = None,
    interval: tuple[float, float] | None = None,
) -> str:
    """Scores of good and, if there are any, defective frames, with the threshold.

    Args:
        good: (n,).
        defect: (m,) or None.
        threshold: drawn as a vertical line.
        tail: fitted to the good ones; drawn as the frames that it expects in each bar.
        interval: of the threshold.
    """
    everything = good if defect is None else np.concatenate((good, defect))
    # Defects may score a hundred times the threshold; the chart is about the threshold's surroundings.
    right = min(float(everything.max()), threshold + 4 * (threshold - float(np.median(good))))
    right = max(right, threshold)
    left = min(float(everything.min()), threshold)
    pad = 0.04 * (right - left or 1.0)
    edges = np.linspace(left - pad, right + pad, _BINS + 1)
    series = [(np.histogram(good, edges)[0], GOOD, f"{good.size:,} good")]
    if defect is not None:
        series.append((np.histogram(defect, edges)[0], DEFECT, f"{defect.size:,} defective"))
    top = max(int(counts.max()) for counts, _, _ in series)
    axes = Axes((edges[0], edges[-1]), (0, 1.15 * top))
    parts = [axes.frame("Scores of the frames", "frame score", "frames", integer_ticks(top))]
    if interval is not None:
        parts.append(axes.band(*interval))
    for counts, colour, _ in series:
        outline = [(edges[0], 0.0)]
        for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
            outline += [(start, float(count)), (end, float(count))]
        outline.append((edges[-1], 0.0))
        parts.append(axes.area(outline, colour))
    entries = [(colour, label) for _, colour, label in series]
    if tail is not None:
        width = edges[1] - edges[0]
        starts = np.linspace(tail.level, max(edges[-1] - width, tail.level + width), 60)
        expected = [
            (float(s + width / 2), good.size * (tail.exceedance(float(s)) - tail.exceedance(float(s + width))))
            for s in starts
            if s + width / 2 <= edges[-1]
        ]
        expected = [(x, min(y, axes.y_range[1])) for x, y in expected]
        if len(expected) > 1:
            parts.append(axes.line(expected, INK, "stroke-width='2' stroke-dasharray='2 3'"))
            entries.append((INK, "fitted tail"))
    parts.append(axes.vertical(threshold, f"threshold {written(threshold)}"))
    parts.append(legend(entries))
    if defect is not None and (beyond := int((defect > edges[-1]).sum())):
        parts.append(text(WIDTH - RIGHT, TOP + 30, f"{beyond} defective score higher →", QUIET, "end"))
    return svg(f"Histogram of the frame scores; threshold {written(threshold)}", parts)


def tail_chart(
    good: Values,
    exceedance: Callable[[float], float],
    level: float,
    rate: float,
    threshold: float,
    interval: tuple[float, float],
) -> str:
    """How often a good frame exceeds a score: measured, and as the fitted tail continues it.

    Args:
        good: (n,).
        exceedance: probability that a good frame scores above its argument; valid from ``level`` on.
        level: where the fitted tail begins.
        rate: the false-alarm budget.
        threshold: where the fitted tail meets the budget.
        interval: of the threshold.
    """
    n = good.size
    scores = np.sort(good)[::-1]
    # The i-th highest of n is exceeded by about i - 1/2 of them.
    measured = (np.arange(1, n + 1) - 0.5) / n
    left = float(np.median(good))
    span = max(threshold, float(scores[0])) - left
    right = min(max(interval[1], threshold, float(scores[0])), threshold + 1.5 * span) + 0.05 * span
    bottom = 10 ** math.floor(math.log10(min(rate, 0.5 / n) / 2))
    axes = Axes((left, right), (bottom, 1.0), log_y=True, left=112)
    lowest = round(math.log10(bottom))
    decades = [10.0**e for e in range(0, lowest - 1, -max(1, math.ceil(-lowest / 7)))]
    ticks = [(decade, odds(decade) if decade < 1 else "all") for decade in decades]
    parts = [axes.frame("How often a good frame scores higher", "frame score", "", ticks)]
    parts.append(axes.band(*interval))
    parts.append(f"<path d='M{axes.left},{axes.y(rate):.1f}H{WIDTH - RIGHT}' stroke='{QUIET}' stroke-dasharray='2 3'/>")
    shown = np.flatnonzero(scores > left)
    if shown.size > _MAX_DOTS:  # as seen on the logarithmic axis, even steps
        shown = np.unique(np.geomspace(1, shown.size, _MAX_DOTS).astype(int)) - 1
    for score, share in zip(scores[shown], measured[shown], strict=True):
        parts.append(
            f"<circle cx='{axes.x(score):.1f}' cy='{axes.y(share):.1f}' r='2.6' fill='{GOOD}' fill-opacity='.7'/>"
        )
    curve = [(s, p) for s in np.linspace(level, right, 120) if (p := exceedance(float(s))) >= bottom]
    if len(curve) > 1:
        parts.append(axes.line(curve, DEFECT))
    parts.append(axes.vertical(threshold, f"budget met at {written(threshold)}"))
    parts.append(text(axes.left + 8, axes.y(rate) - 6, f"budget: {odds(rate)}", QUIET, halo=True))
    parts.append(legend([(GOOD, "measured"), (DEFECT, "fitted tail"), (GRID, "95 % interval")]))
    return svg(f"Share of good frames above a score; a budget of {odds(rate)} is met at {written(threshold)}", parts)


def roc_chart(found: Values, false: Values, auroc: float, chosen: tuple[float, float]) -> str:
    """Receiver operating characteristic.

    Args:
        found: (t,), share of defects found, ascending.
        false: (t,), share of good frames alarmed, ascending.
        auroc: area under the curve.
        chosen: (false, found) at the threshold.
    """
    axes = Axes((0, 1), (0, 1))
    parts = [
        axes.frame(
            f"Defects found, false alarms: auROC {auroc:.4f}", "good frames alarmed", "defects found", FIFTHS, FIFTHS
        )
    ]
    parts.append(axes.line([(0, 0), (1, 1)], GRID, "stroke-width='1.5'"))
    parts.append(axes.line(staircase(false.tolist(), found.tolist()), GOOD))
    label = f"at the threshold {100 * chosen[1]:.1f} % found, {100 * chosen[0]:.1f} % false"
    parts.extend(
        f"<circle cx='{cx:.1f}' cy='{cy:.1f}' r='5' fill='{PAPER}' stroke='{INK}' stroke-width='2'/>"
        for cx, cy in ((axes.x(chosen[0]), axes.y(chosen[1])), (10, 32))
    )
    parts.append(text(22, 36, label, INK))
    return svg(f"ROC curve, area {auroc:.4f}; {label}", parts)


def place_chart(places: Places, reach: float) -> str:
    """Mean patch score by place in the frame, drawn as the frame lies.

    Args:
        places: scores by place.
        reach: what the highest-scoring good frames score; the scale goes towards it.
    """
    down, across = places.edges
    rows, columns = _joined(len(places.grid.rows)), _joined(len(places.grid.columns))
    mean = np.array([[places.mean[np.ix_(r, c)].mean() for c in columns] for r in rows])
    highest = np.array([[places.highest[np.ix_(r, c)].max() for c in columns] for r in rows])
    first = np.array([[places.first[np.ix_(r, c)].sum() for c in columns] for r in rows])
    frame_height, frame_width = places.grid.frame_size
    scale = (WIDTH - 8) / frame_width
    area = frame_height * scale
    height = round(TOP + area + 46)
    low = float(mean.min())
    high = max(float(mean.max()), low + _ROOM * (reach - float(np.median(mean))))
    high = high if high > low else low + (abs(low) or 1.0)
    parts = [text(4, 17, "Score by place in the frame", INK, bold=True, size=15)]
    parts.append(text(4, 36, "mean score of the patch there; point at one for figures", QUIET))
    parts.append(f"<rect x='4' y='{TOP}' width='{frame_width * scale:.1f}' height='{area:.1f}' fill='{GRID}'/>")
    small = mean.size <= 70
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            left, right = 4 + across[column[0]] * scale, 4 + across[column[-1] + 1] * scale
            top, bottom = TOP + down[row[0]] * scale, TOP + down[row[-1] + 1] * scale
            share = (mean[i, j] - low) / (high - low)
            words = (
                f"mean {mean[i, j]:.4g}, highest {highest[i, j]:.4g}; the frame's highest patch was here in "
                f"{first[i, j]:,} of {places.n:,} frames"
            )
            size = f"width='{right - left + 0.2:.1f}' height='{bottom - top + 0.2:.1f}'"  # no seams
            colour = _COLOURS[round(255 * min(share, 1))]
            parts.append(f"<rect x='{left:.1f}' y='{top:.1f}' {size} fill='{colour}'><title>{words}</title></rect>")
            if small:
                ink = "#000" if share > 0.5 else "#fff"
                middle = ((left + right) / 2, (top + bottom) / 2 + 4)
                parts.append(text(*middle, f"{mean[i, j]:.3g}", ink, "middle"))
    parts += _scale(low, high, height - 36)
    told = f"{len(rows)} rows of {len(columns)}; lowest {low:.4g}, highest {mean.max():.4g}"
    return svg(f"Map of the mean score by place: {told}", parts, height)


def average_chart(places: Places, jpeg: bytes) -> str:
    """The mean of the good frames, drawn as ``place_chart`` draws its map.

    Args:
        places: scores by place.
        jpeg: of ``places.average``.
    """
    frame_height, frame_width = places.grid.frame_size
    width = WIDTH - 8
    area = frame_height * width / frame_width
    data = base64.b64encode(jpeg).decode()
    parts = [
        text(4, 17, "The mean of the good frames", INK, bold=True, size=15),
        text(4, 36, f"{places.n:,} frames; nothing that moves is left", QUIET),
        f"<image x='4' y='{TOP}' width='{width}' height='{area:.1f}' href='data:image/jpeg;base64,{data}'/>",
    ]
    return svg("The mean of all good frames", parts, round(TOP + area + 8))


def run_chart(good: Values, threshold: float) -> str:
    """Scores of good frames one after the other.

    Args:
        good: (n,), in order of capture.
        threshold: drawn as a line.
    """
    bottom, top = min(float(good.min()), threshold), max(float(good.max()), threshold)
    pad = 0.06 * (top - bottom)
    axes = Axes((1, good.size), (bottom - pad, top + 2 * pad))
    ticks = [(v, label) for v, label in nice_ticks(*axes.y_range) if v >= axes.y_range[0]]
    parts = [axes.frame("Scores, one frame after the other", "good frame", "frame score", ticks)]
    step = max(1, good.size // _MAX_DOTS)
    # Of many frames, the highest and the lowest of every stretch: nothing that stands out may get lost.
    shown = {k for i in range(0, good.size, 2 * step) for k in _ends(good[i : i + 2 * step], i)}
    parts += [
        f"<circle cx='{axes.x(k + 1):.1f}' cy='{axes.y(float(good[k])):.1f}' r='2.4' fill='{GOOD}' fill-opacity='.7'/>"
        for k in sorted(shown)
    ]
    y = axes.y(threshold)
    parts.append(
        f"<path d='M{axes.left},{y:.1f}H{WIDTH - RIGHT}' stroke='{INK}' stroke-width='1.6' stroke-dasharray='6 4'/>"
    )
    parts.append(text(axes.left + 6, y - 6, f"threshold {written(threshold)}", INK, bold=True, halo=True))
    return svg(f"Scores of the good frames in order; threshold {written(threshold)}", parts)


def _ends(part: Values, start: int) -> tuple[int, int]:
    return start + int(part.argmin()), start + int(part.argmax())


def _joined(n: int) -> list[NDArray[np.int64]]:
    """Indices of ``n`` rows or columns in at most ``_MAX_CELLS`` groups of neighbours."""
    return np.array_split(np.arange(n), min(n, _MAX_CELLS))


def _scale(low: float, high: float, y: float) -> list[str]:
    """The colours and what they stand for."""
    n, width = 32, 200
    parts = [
        f"<rect x='{4 + i * width / n:.1f}' y='{y:.0f}' width='{width / n + 0.2:.1f}' height='10' "
        f"fill='{_COLOURS[round(255 * i / (n - 1))]}'/>"
        for i in range(n)
    ]
    parts.append(text(4, y + 26, f"{low:.4g}", QUIET))
    parts.append(text(4 + width, y + 26, f"{high:.4g}", QUIET, "end"))
    return parts


def _colour_table() -> list[str]:
    """256 colours from dark to light that colour-blind people tell apart, too (Nuñez et al., PLOS ONE 13, 2018)."""
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_CIVIDIS)[:, 0]
    return [f"#{r:02x}{g:02x}{b:02x}" for b, g, r in bgr.tolist()]


_COLOURS = _colour_table()
