"""The tables of docs/performance.md, of what ``make bench`` measured: ``PYTHONPATH=. python docs/make_performance.py``.

Each is made of one file, benchmarks/results/perf_NAME.json; where there is none, the page says so.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from docs.tables import fill, markdown
from engines.manifest import Preprocessing
from engines.tiling import Tiler

PAGE = Path(__file__).with_name("performance.md")
RESULTS = PAGE.parents[1] / "benchmarks" / "results"

Result = dict[str, Any]


class Box(NamedTuple):
    """A computer that could stand at a line; ``gflops`` is what one core does in fp32, None: as the measured one."""

    name: str
    cores: int
    gflops: float | None = None


# Cortex-A78AE: two 128-bit units, so 16 operations a cycle; large products reach about four fifths of that.
BOXES = (
    Box("x86, 4 cores", 4),
    Box("x86, 16 cores", 16),
    Box("Orin Nano, 6 cores at 1.7 GHz", 6, 16 * 1.7 * 0.8),
    Box("AGX Orin, 12 cores at 2.2 GHz", 12, 16 * 2.2 * 0.8),
)
LINES = ((640, 480, 10.0), (1280, 1024, 2.0), (1920, 1080, 1.0), (2448, 2048, 0.5))  # columns, rows, frames a second
BUSY = 0.7  # share of the cores that inspection may take


def figure(value: float) -> str:
    """Three figures."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def machine_words(result: Result) -> str:
    """On what and with what it was measured, and how busy that was."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['cpu']}, CPUs for the process: {machine['cpus']}, load at the start {machine['load']}; "
        f"{versions}; {machine['measured_at'][:10]}."
    )


def cpu_engines(result: Result) -> str:
    """One frame's patches, by engine, precision and threads."""
    rows = [
        [
            str(row["width"]),
            str(row["threads"]),
            row["way"],
            *(
                [
                    figure(row["p50_ms"]),
                    figure(1e3 * result["patches"] / row["p50_ms"]),
                    f"{row['times_onnxruntime']:.2f}",
                ]
                if "p50_ms" in row
                else ["", "", row["failed"]]
            ),
        ]
        for row in result["rows"]
    ]
    head = ["width", "threads", "engine", f"ms for {result['patches']} patches", "patches/s", "times ONNX Runtime"]
    return markdown(head, rows)


def peers(result: Result) -> str:
    """Whole frames of theirs and ours."""
    own = list(dict.fromkeys(name for row in result["rows"] for name in row.get("times_ours", {})))
    rows = []
    for row in result["rows"]:
        ratios = row.get("times_ours", {})
        part = "" if row["part"] == "frame" else ", patches to scores only"
        rows.append(
            [
                f"{'' if ratios else '**ours**, '}{row['who']}{part}",
                f"{row['backend']} {row['precision']}",
                figure(row["p50_ms"]),
                *(f"{ratios[name]:.2f}" if name in ratios else "" for name in own),
            ]
        )
    side = result["size"]
    head = ["", "run by", f"ms, {side} × {side}", *(f"times ours, {name}" for name in own)]
    return markdown(head, rows)


def patch_by_patch(result: Result) -> str:
    """The authors' way beside ours."""
    rows = [
        [
            str(row["width"]),
            row["way"],
            figure(row["patch_by_patch_ms"]),
            figure(row["ours_ms"]),
            f"{row['times_as_fast']:.1f}",
            f"{row['scores_differ_by']:.0e}" if row["scores_differ_by"] is not None else "not compared",
        ]
        for row in result["rows"]
    ]
    head = ["width", "ours", "theirs, ms", "ours, ms", "times as fast", "scores differ by"]
    return markdown(head, rows)


def many_stations(result: Result) -> str:
    """What one computer carries."""
    rows = [
        [
            str(row["stations"]),
            str(row["threads"]),
            f"{row['pace']:.1f} a second" if row["pace"] else "full speed",
            figure(row["frames_per_second"]),
            figure(row["patches_per_second"]),
            f"{row['slowest_to_fastest']:.2f}",
            f"{row['latency_p50_ms']:.0f}, {row['latency_p99_ms']:.0f}",
            figure(row["cpu_ms_per_frame"]),
            f"{row['cost_times_one']:.2f}",
            f"{row['dropped_share']:.0%}",
        ]
        for row in result["rows"]
    ]
    head = ["stations", "threads each", "pace of each", "frames/s", "patches/s", "slowest / fastest"]
    return markdown([*head, "latency p50, p99, ms", "CPU ms a frame", "times one station's", "dropped"], rows)


def lines_carried(box: Box, ms_per_patch: float, gflops: float, patches: int, fps: float) -> int:
    """How many lines of so many frames of ``patches`` a second a computer carries.

    Args:
        box: the computer.
        ms_per_patch: CPU time of a patch with everything, on a core as measured.
        gflops: of that core, a large matrix product in fp32.
        patches: of a frame.
        fps: frames a second.
    """
    own = ms_per_patch * (gflops / box.gflops if box.gflops else 1)
    return math.floor(BUSY * box.cores * 1000 / (fps * patches * own))


def lines(result: Result) -> str:
    """How many lines other computers would carry, by the dearest frame that was measured."""
    ms_per_patch = max(row["cpu_ms_per_frame"] for row in result["rows"]) / result["patches"]
    gflops = result["gemm_flops_one_thread"] / 1e9
    tiler = Tiler(Preprocessing(colour="gray", patch_size=64, stride=64))
    rows = []
    for width, height, fps in LINES:
        patches = tiler.grid((height, width)).n
        carried = (lines_carried(box, ms_per_patch, gflops, patches, fps) for box in BOXES)
        rows.append([f"{width} × {height}", f"{fps:g}", str(patches), *(str(n) if n else "none" for n in carried)])
    return markdown(["frames", "a second", "patches", *(box.name for box in BOXES)], rows)


def daemon(result: Result) -> str:
    """The whole daemon beside its engine."""
    turns, rows = result["turns"], []
    engine, every = (median(turn["engine_fps"] for turn in turns), median(turn["every"]["fps"] for turn in turns))
    rows.append(["frames/s: engine alone", figure(engine), ""])
    rows.append(["frames/s: whole daemon, policy `every`", figure(every), ""])
    rows.append(["of the engine alone, median of the turns", f"{result['of_engine']:.3f}", "≥ 0.95"])
    for row in result["waiting"]:
        name = f"with an engine that only waits, {row['wait_ms']:g} ms a frame: share of the time that it is busy"
        rows.append([name, f"{row['engine_busy']:.3f}", "≥ 0.95"])
    latest = result["latest"]
    for key, end in (("received", "to the score's arrival"), ("alert", "to the alert's acknowledgement")):
        if key in latest["ms"]:
            ms = latest["ms"][key]
            name = f"policy `latest`, ms from capture {end}, p50 and p99"
            rows.append([name, f"{figure(ms['p50'])} and {figure(ms['p99'])}", f"≤ {figure(latest['limit_ms'])}"])
    fixed = result["fixed"]
    name = f"CPUs used by the default preset, untrained, at ten frames a second ({figure(fixed['fps'])} done)"
    rows.append([name, figure(fixed["cpus_used"]), ""])
    return markdown([f"{result['engine']}, {result['broker']}", "", "wanted"], rows)


def start(result: Result) -> str:
    """Start-up, memory and the size of the installation."""
    starts = result["start"]
    resident = max(turn["every"]["resident_mib"] for turn in result["turns"])
    rows = [
        ["from the command to READY, s", figure(median(starts["seconds"])), "≤ 2"],
        ["of these, CPU s", figure(median(starts["cpu_seconds"])), ""],
        [f"memory after {result['frames']} frames, MiB", f"{resident:.0f}", "≤ 250"],
    ]
    if (base := result.get("base")) is not None:
        rows.append(["the same with the base package's ONNX Runtime, MiB", f"{base['resident_mib']:.0f}", "≤ 250"])
    if (install := result.get("install")) is not None:
        rows.append([f"base installation, {install['packages']} packages, MiB", f"{install['mib']:.0f}", ""])
    return markdown([f"{result['engine']}", "", "wanted"], rows)


def as_it_is(result: Result) -> str:
    """Every figure of every row, under its name."""
    names = list(dict.fromkeys(name for row in result["rows"] for name in row))
    rows = [[_cell(row.get(name, "")) for name in names] for row in result["rows"]]
    return markdown([name.replace("_", " ") for name in names], rows)


def _cell(value: object) -> str:
    return figure(value) if isinstance(value, float) and abs(value) >= 1e-3 else str(value)


def train_speed(result: Result) -> str:
    """Steps of this loop and of a plain one."""
    rows = [
        [
            str(row["width"]),
            row["phase"],
            row["way"],
            figure(row["ms"]),
            str(row["patches_per_second"]),
            f"{row['times_plain']:.2f}",
            f"{row['of_the_peak']:.0%}",
        ]
        for row in result["rows"]
    ]
    head = ["width", "phase", "way", f"ms for {result['batch']} patches", "patches/s", "times plain", "of the peak"]
    return markdown(head, rows)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "cpu_engines": ("cpu_engines", cpu_engines),
    "graph_rewrites": ("graph_rewrites", as_it_is),
    "patches": ("patches", as_it_is),
    "peers": ("peers", peers),
    "patch_by_patch": ("patch_by_patch", patch_by_patch),
    "daemon": ("pipeline", daemon),
    "start": ("pipeline", start),
    "many_stations": ("many_stations", many_stations),
    "lines": ("many_stations", lines),
    "train_speed": ("train_speed", train_speed),
}
"""By the page's name for it: of which results, and how it is made."""


def tables(results: Path) -> Iterator[tuple[str, str]]:
    """Every table with what it was measured on, by name."""
    for name, (source, make) in TABLES.items():
        file = results / f"perf_{source}.json"
        if not file.is_file():
            yield name, f"*Not measured yet: `make bench` writes {file.name}.*"
            continue
        result = json.loads(file.read_text())
        yield name, f"{make(result)}\n\n{machine_words(result)}"


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with its tables made anew."""
    return fill(page, tables(results), PAGE)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
