"""One station in full: its last minutes as a chart, how it does, its alerts."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.text import Text

from engines.help import page_of_reason
from station.dashboard.records import AlertRecord
from station.watching.drawing import chart, section
from station.watching.sight import Sight
from station.watching.words import STATE_MARKS, STATE_STYLES, clean

CHART_HEIGHT = 4


def details(sight: Sight, view: dict[str, Any], now: float, width: int) -> list[Text]:
    """Lines, the most important first: a chart, what is wrong, what it does, its alerts."""
    path, state = view["path"], view["state"]
    since = f" since {_clock(view['since'])}" if view["since"] else ""
    title = Text.assemble((path, "bold"), "  ", (f"{STATE_MARKS[state]} {state}{since}", STATE_STYLES[state]))
    lines = [section(title, width)]
    lines += [
        Text.assemble(f"  {clean(reason)}", (f"  see {page_of_reason(reason)}", "dim"), style="yellow")
        for reason in view["reasons"][:3]
    ]
    lines += [Text.assemble("  ", line) for line in chart(sight.peaks(path, now, width - 4), CHART_HEIGHT)]
    full = sight.fleet.view(path, now, parts=("info", "health")) or view
    for name, words in (*_info(full["info"]), *_health(full["health"])):
        lines.append(Text.assemble((f"  {name:<9}", "dim"), clean(words)))
    alerts = sight.alerts_of(path)
    lines += [_alert(record) for record in alerts[:4]]
    if len(alerts) > 4:
        lines.append(Text(f"  … and {len(alerts) - 4} earlier alerts", "dim"))
    return lines


def _info(info: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if info is not None:
        yield (
            "bundle",
            (
                f"{info['bundle_name']} · {info['engine_backend']} on {info['engine_device']}, "
                f"{info['engine_precision']} · threshold {info['threshold']:.4g} · version {info['version']}"
            ),
        )
        size = f" · {info['frame_width']} x {info['frame_height']}" if info["frame_width"] else ""
        yield "camera", f"{info['camera_url']}{size}"


def _health(health: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if health is None:
        return
    camera, drift = health["camera"], health["drift"]
    seen = [f"{name} {camera[name]:.3g}" for name in ("brightness", "sharpness", "noise") if camera[name] is not None]
    yield "", " · ".join([*seen, f"{camera['reconnects']} reconnections"])
    moved = f" {drift['direction']}" if drift["direction"] else ""
    yield "scores", f"{drift['state']}{moved}, of {drift['frames']} frames beside the calibration's"
    stages = ", ".join(f"{name} {ms['p50']:.0f}/{ms['p99']:.0f}" for name, ms in health["stages_ms"].items())
    yield "ms", f"{stages} (p50/p99)" if stages else "no frame yet"
    queued = ", ".join(f"{name} {number}" for name, number in health["queued"].items() if name != "outbox_bytes")
    lost = ", ".join(f"{name} {number}" for name, number in health["dropped"].items() if number)
    yield "waiting", f"{queued} · lost: {lost or 'nothing'}"
    warm = [f"{zone} {degrees:.0f} °C" for zone, degrees in health["temperatures_c"].items()]
    yield (
        "device",
        " · ".join([f"up {_span(health['uptime_s'])}", f"{health['resident_bytes'] / 2**20:.0f} MiB", *warm]),
    )


def _alert(record: AlertRecord) -> Text:
    open_ = record.state == "open"
    boxes = ", ".join(f"{box.w}x{box.h} at ({box.x}, {box.y})" for box in record.boxes[:3])
    times = f"{record.peak_score / record.threshold:.1f} x" if record.threshold > 0 else ""
    return Text.assemble(
        ("  ⚑ open   " if open_ else "  ✓ closed ", "bold red" if open_ else "dim"),
        f"{time.strftime('%H:%M:%S', record.opened_at.astimezone().timetuple())}  ",
        f"peak {record.peak_score:.4g}, {times} the threshold  {boxes}  {clean(record.name)}  ",
        (record.verdict, "bold"),
    )


def _clock(stamp: str) -> str:
    """Local time of a view's time."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
