"""The table of stations: a line each, and one more for its reasons where there are some."""

from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from station.watching.drawing import gauge, sparkline
from station.watching.sight import Sight
from station.watching.words import STATE_MARKS, STATE_STYLES, clean


@dataclass(frozen=True, slots=True)
class Columns:
    """Widths; 0: left out."""

    state: int
    name: int
    score: int
    gauge: int
    alerts: int
    spark: int
    rate: int
    latency: int


def columns_for(views: list[dict[str, Any]], width: int) -> Columns:
    """What there is room for."""
    longest = max(cell_len(view["path"]) for view in views)
    wide, middle = width >= 100, width >= 70
    state, score, alerts = 11 if middle else 2, 8, 9 if middle else 5
    bar, rate, latency = 15 if wide else 9 if middle else 0, 8 if middle else 0, 8 if wide else 0
    name = min(longest + 1, max(12, width - 2 - state - score - alerts - bar - rate - latency - 12))
    spark = max(0, width - 2 - state - name - score - bar - alerts - rate - latency - 1)
    return Columns(state, name, score, bar, alerts, spark, rate, latency)


def heads(columns: Columns) -> Text:
    """What stands above the columns."""
    named = (
        ("", 2),
        ("state" if columns.state > 2 else "", columns.state),
        ("station", columns.name),
        (f"{'score':>{columns.score - 1}}", columns.score),
        ("threshold" if columns.gauge > 9 else "", columns.gauge),
        ("alerts" if columns.alerts > 5 else "", columns.alerts),
        (f"last {columns.spark} s", columns.spark),
        (f"{'frames/s':>8}", columns.rate),
        (f"{'ms':>7}", columns.latency),
    )
    return Text("".join(set_cell_size(name, cells) for name, cells in named), "dim")


def station_rows(sight: Sight, view: dict[str, Any], now: float, columns: Columns, *, selected: bool) -> list[Text]:
    """One line, and one more for the reasons where there are some."""
    state, score, alerts = view["state"], view["score"], len(view["open_alerts"])
    style = STATE_STYLES[state]
    line = Text.assemble(("▸ " if selected else "  ", "bold"))
    line.append(set_cell_size(f"{STATE_MARKS[state]} {state}", columns.state), style)
    line.append(set_cell_size(_shorten(view["path"], columns.name - 1), columns.name), "bold")
    stale = "dim" if state not in {"online", "degraded"} else ""
    if score is None:
        line.append(" " * (columns.score + columns.gauge))
    else:
        words = f"{score['score']:.4g}"
        line.append(f"{words:>{columns.score - 1}} ", stale or ("bold red" if score["anomalous"] else ""))
        if columns.gauge:
            line.append_text(gauge(score["score"], score["threshold"], columns.gauge - 2))
            line.append("  ")
    told = f"⚑ {alerts} open" if columns.alerts > 5 else f"⚑ {alerts}"
    if alerts:
        line.append(told, "bold white on red")
    line.append(" " * (columns.alerts - (len(told) if alerts else 0)))
    line.append_text(sparkline(sight.peaks(view["path"], now, columns.spark)))
    if columns.rate:
        line.append(f"{view['fps']:>8.1f}" if view["fps"] else " " * 8, stale)
    if columns.latency:
        line.append(f"{score['latency_ms']:>8.0f}" if score and score["latency_ms"] is not None else " " * 8, stale)
    # Without a broker nothing is known of any station, which the screen says once.
    told_reasons = [reason for reason in view["reasons"] if not reason.startswith("broker-away:")]
    if not told_reasons:
        return [line]
    reasons = clean("; ".join(told_reasons))
    return [line, Text(f"{' ' * (2 + columns.state)}└ {reasons}", style if state != "online" else "yellow")]


def _shorten(name: str, width: int) -> str:
    """The end of a name tells stations apart."""
    return name if cell_len(name) <= width else f"…{name[-(width - 1) :]}"
