"""The three charts of a calibration, as SVG text: no plotting library on a line device.

Each function returns one ``<svg>`` element that stands alone as a file and inside HTML.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from station.calibration import odds

Values = NDArray[np.float64]

GOOD, DEFECT, ACCENT, INK, QUIET, GRID = "#2b6ca3", "#c8452f", "#111827", "#1f2937", "#6b7280", "#e5e7eb"
_WIDTH, _HEIGHT = 620, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 26, 46, 50
_MAX_DOTS = 300
_STYLE = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:12px"


@dataclass(frozen=True)
class _Axes:
    """Maps data to pixels; ``log_y`` takes decades."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_y: bool = False

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log_y:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(px):.1f},{self.y(py):.1f}" for px, py in points)


def histogram(good: Values, defect: Values | None, threshold: float) -> str:
    """Scores of good and, if there are any, defective frames, with the threshold.

    Args:
        good: (n,).
        defect: (m,) or None.
        threshold: drawn as a vertical line.
    """
    everything = good if defect is None else np.concatenate((good, defect))
    # Defects may score a hundred times the threshold; the chart is about the threshold's surroundings.
    right = min(float(everything.max()), threshold + 4 * (threshold - float(np.median(good))))
    right = max(right, threshold, float(good.max()))
    left = float(everything.min())
    pad = 0.04 * (right - left or 1.0)
    edges = np.linspace(left - pad, right + pad, 41)
    series = [(np.histogram(good, edges)[0], GOOD, f"{good.size} good")]
    if defect is not None:
        series.append((np.histogram(defect, edges)[0], DEFECT, f"{defect.size} defective"))
    top = max(int(counts.max()) for counts, _, _ in series)
    axes = _Axes((edges[0], edges[-1]), (0, 1.08 * top))
    parts = [_frame(axes, "Scores of the frames", "frame score", "frames", _integer_ticks(top))]
    for counts, colour, _ in series:
        outline = [(edges[0], 0.0)]
        for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
            outline += [(start, float(count)), (end, float(count))]
        outline.append((edges[-1], 0.0))
        parts.append(f'<path d="{axes.path(outline)}Z" fill="{colour}" fill-opacity=".35" stroke="{colour}"/>')
    parts.append(_vertical(axes, threshold, f"threshold {threshold:.5g}"))
    parts.append(_legend([(colour, label) for _, colour, label in series]))
    if defect is not None and (beyond := int((defect > edges[-1]).sum())):
        parts.append(_text(_WIDTH - _RIGHT, 37, f"{beyond} defective score higher", QUIET, "end"))
    return _svg("Histogram of the frame scores", parts)


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
    axes = _Axes((left, right), (bottom, 1.0), log_y=True)
    decades = [10.0**e for e in range(round(math.log10(bottom)), 1)]
    parts = [
        _frame(
            axes,
            "How often a good frame scores higher",
            "frame score",
            "share of good frames",
            [(decade, odds(decade) if decade < 1 else "all") for decade in decades],
        )
    ]
    low, high = (min(max(value, left), right) for value in interval)
    parts.append(
        f'<rect x="{axes.x(low):.1f}" y="{_TOP}" width="{axes.x(high) - axes.x(low):.1f}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}" fill="{ACCENT}" fill-opacity=".07"/>'
    )
    parts.append(f'<path d="M{_LEFT},{axes.y(rate):.1f}H{_WIDTH - _RIGHT}" stroke="{QUIET}" stroke-dasharray="2 3"/>')
    parts.append(_text(_LEFT + 8, axes.y(rate) - 6, f"budget: {odds(rate)}", QUIET))
    shown = np.flatnonzero(scores > left)
    if shown.size > _MAX_DOTS:  # as seen on the logarithmic axis, even steps
        shown = np.unique(np.geomspace(1, shown.size, _MAX_DOTS).astype(int)) - 1
    for score, share in zip(scores[shown], measured[shown], strict=True):
        parts.append(
            f'<circle cx="{axes.x(score):.1f}" cy="{axes.y(share):.1f}" r="2.6" fill="{GOOD}" fill-opacity=".6"/>'
        )
    curve = [(s, p) for s in np.linspace(level, right, 120) if (p := exceedance(float(s))) >= bottom]
    if len(curve) > 1:
        parts.append(f'<path d="{axes.path(curve)}" fill="none" stroke="{DEFECT}" stroke-width="2"/>')
    parts.append(_vertical(axes, threshold, f"budget met at {threshold:.5g}"))
    parts.append(_legend([(GOOD, "measured"), (DEFECT, "fitted tail"), ("#d1d5db", "95 % interval")]))
    return _svg("Share of good frames above a score", parts)


def roc_chart(found: Values, false: Values, auroc: float, chosen: tuple[float, float]) -> str:
    """Receiver operating characteristic.

    Args:
        found: (t,), share of defects found, ascending.
        false: (t,), share of good frames alarmed, ascending.
        auroc: area under the curve.
        chosen: (false, found) at the threshold.
    """
    axes = _Axes((0, 1), (0, 1))
    fifths = [(v / 5, f"{v * 20} %") for v in range(6)]
    parts = [
        _frame(
            axes,
            f"Defects found against false alarms: auROC {auroc:.4f}",
            "good frames alarmed",
            "defects found",
            fifths,
            fifths,
        )
    ]
    parts.append(f'<path d="{axes.path([(0, 0), (1, 1)])}" stroke="{GRID}" stroke-width="1.5"/>')
    curve: list[tuple[float, float]] = []
    for x, y in zip(false, found, strict=True):
        if curve:
            curve.append((float(x), curve[-1][1]))
        curve.append((float(x), float(y)))
    parts.append(f'<path d="{axes.path(curve)}" fill="none" stroke="{GOOD}" stroke-width="2.2"/>')
    label = f"at the threshold {100 * chosen[1]:.1f} % found, {100 * chosen[0]:.1f} % false"
    x, y = _WIDTH - _RIGHT - 260, axes.y(0.06)
    for cx, cy in ((axes.x(chosen[0]), axes.y(chosen[1])), (x, y - 4)):
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="5" fill="white" stroke="{ACCENT}" stroke-width="2"/>')
    parts.append(_text(x + 12, y, label, INK))
    return _svg("ROC curve", parts)


def stacked(charts: Sequence[str]) -> str:
    """Several charts below one another as one SVG file."""
    height = _HEIGHT * len(charts)
    placed = [chart.replace("<svg ", f'<svg y="{i * _HEIGHT}" ', 1) for i, chart in enumerate(charts)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}">{"".join(placed)}</svg>\n'
    )


def _svg(title: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" style="{_STYLE}"><title>{escape(title)}</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>{"".join(parts)}</svg>'
    )


def _frame(
    axes: _Axes,
    title: str,
    x_label: str,
    y_label: str,
    y_ticks: Sequence[tuple[float, str]],
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<text x="{_LEFT}" y="18" fill="{INK}" font-size="14" font-weight="600">{escape(title)}</text>']
    for value, label in y_ticks:
        y = axes.y(value)
        parts.append(f'<path d="M{_LEFT},{y:.1f}H{right}" stroke="{GRID}"/>')
        parts.append(_text(_LEFT - 8, y + 4, label, QUIET, "end"))
    for value, label in x_ticks or _nice_ticks(*axes.x_range):
        x = axes.x(value)
        parts.append(f'<path d="M{x:.1f},{bottom}v5" stroke="{QUIET}"/>')
        parts.append(_text(x, bottom + 19, label, QUIET, "middle"))
    parts.append(f'<path d="M{_LEFT},{bottom}H{right}" stroke="{QUIET}"/>')
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 10, x_label, INK, "middle"))
    parts.append(
        f'<text transform="translate(14,{(_TOP + bottom) / 2:.0f}) rotate(-90)" fill="{INK}" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _vertical(axes: _Axes, value: float, label: str) -> str:
    x = axes.x(value)
    anchor, dx = ("end", -6) if x > _WIDTH * 0.6 else ("start", 6)
    return (
        f'<path d="M{x:.1f},{_TOP}V{_HEIGHT - _BOTTOM}" stroke="{ACCENT}" stroke-width="1.6" stroke-dasharray="6 4"/>'
        + _text(x + dx, _TOP + 12, label, ACCENT, anchor)
    )


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    parts = []
    x = float(_LEFT)
    for colour, label in entries:
        parts.append(f'<rect x="{x:.0f}" y="28" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 15, 37, label, QUIET))
        x += 15 + 6.6 * len(label) + 18
    return "".join(parts)


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _nice_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """About six round numbers between ``low`` and ``high``."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    last = math.floor(high / step)
    digits = max(0, -math.floor(math.log10(step)) + (1 if step / power == 2.5 else 0))
    return [(i * step, f"{i * step:,.{digits}f}") for i in range(first, last + 1)]


def _integer_ticks(top: int) -> list[tuple[float, str]]:
    return [(value, label) for value, label in _nice_ticks(0, max(top, 1)) if value == round(value)]
