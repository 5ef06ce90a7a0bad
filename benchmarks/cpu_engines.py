"""How fast the CPU scores frames: OpenVINO in each precision and mode beside ONNX Runtime, all in one process.

The ways take turns, one frame each, so that whatever else the machine does falls on all of them alike; "times ORT" is
the median of the rounds' ratios. Every way is the engine that a station uses, from uint8 patches to scores. Weights are
untrained, for speed does not depend on them, unless --bundle names a bundle. A precision that this CPU does not have,
or that the accuracy gate refuses, is listed with the reason instead of a time. "open s" is how long it takes to open
an engine the first time, which compiles and judges, and then from the cache.

    python -m benchmarks.cpu_engines --json benchmarks/results/cpu_engines.json
    python -m benchmarks.cpu_engines --bundle bundles/leather --patches 320 --threads 4
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from structlog.testing import capture_logs

from benchmarks import machine
from benchmarks.untrained import untrained
from engines import ort
from engines.bundle import Bundle, read_bundle
from engines.engine import Engine, EngineSettings, UInt8Array
from engines.errors import EngineError
from engines.opening import open_engine
from engines.openvino import library

PRECISIONS = ("fp32", "bf16", "int8")
MODES = ("latency", "throughput")
FRAMES = 4  # shown in turn, so that no cache holds the next one
WARM_UP = 3
BASE = "ONNX Runtime fp32"


def open_ways(
    bundle: Bundle, threads: int, cache: Path, failed: dict[str, str]
) -> dict[str, tuple[Engine, dict[str, Any]]]:
    """Every way that this machine can go, by name, with what is known of it; the others' reasons go to ``failed``."""
    started = time.perf_counter()
    engine: Engine = ort.OnnxRuntimeEngine(bundle, EngineSettings(threads=threads))
    ways = {BASE: (engine, {"open_seconds": [round(time.perf_counter() - started, 3)]})}
    for precision in PRECISIONS:
        for mode in MODES:
            name = f"OpenVINO {precision} {mode}"
            settings = EngineSettings.model_validate(
                {"backend": "openvino", "threads": threads, "precision": precision, "mode": mode, "cache": cache / name}
            )
            seconds = []
            try:
                with capture_logs() as logs:
                    for _ in range(2):
                        started = time.perf_counter()
                        engine = open_engine(bundle, settings)
                        seconds.append(round(time.perf_counter() - started, 3))
                        engine.close()
                    engine = open_engine(bundle, settings)
            except EngineError as error:
                failed[name] = str(error)
                continue
            if engine.info.precision != precision:
                failed[name] = next(log.get("reason", log["event"]) for log in logs if log["log_level"] == "warning")
                continue
            verdict = next(log["verdict"] for log in logs if log["event"] == "plan judged")
            ways[name] = (engine, {"open_seconds": seconds, "verdict": verdict})
    return ways


def measure(
    ways: dict[str, tuple[Engine, dict[str, Any]]], frames: list[UInt8Array], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds a frame of every way, one from each round."""
    ms: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(WARM_UP + rounds):
        for name, (engine, _) in ways.items():
            before = time.perf_counter()
            engine.score(frames[i % len(frames)])
            if i >= WARM_UP:
                ms[name].append(1e3 * (time.perf_counter() - before))
    return ms


def run(bundles: list[Bundle], threads: list[int], n: int, rounds: int, result: dict[str, Any]) -> None:
    """Measure all; fills ``result`` as it goes, so that Ctrl-C keeps what is there."""
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("", total=len(bundles) * len(threads))
        for bundle in bundles:
            P = bundle.manifest.preprocessing.patch_size
            rng = np.random.default_rng(0)
            frames = [rng.integers(0, 256, (n, P, P, 3), dtype=np.uint8) for _ in range(FRAMES)]
            for count in threads:
                head = {"bundle": bundle.manifest.name, "width": bundle.manifest.network.width, "threads": count}
                progress.update(task, description=f"{bundle.manifest.name}, threads: {count}")
                failed: dict[str, str] = {}
                ways = open_ways(bundle, count, Path(folder, bundle.manifest.name, str(count)), failed)
                ms = measure(ways, frames, rounds)
                for name, (engine, facts) in ways.items():
                    ratios = [base / own for base, own in zip(ms[BASE], ms[name], strict=True)]
                    result["rows"].append(
                        {
                            **head,
                            "way": name,
                            **facts,
                            "p50_ms": round(statistics.median(ms[name]), 3),
                            "least_ms": round(min(ms[name]), 3),
                            "times_onnxruntime": round(statistics.median(ratios), 3),
                        }
                    )
                    engine.close()
                result["rows"] += [{**head, "way": name, "failed": reason} for name, reason in failed.items()]
                progress.advance(task)


def show(result: dict[str, Any]) -> None:
    """The table."""
    console = machine.console()
    table = Table(title=f"{result['patches']} patches a frame", box=None)
    for column in ("bundle", "threads", "way"):
        table.add_column(column)
    for column in ("p50 ms", "least ms", "patches/s", "times ORT", "open s"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        head = (row["bundle"], str(row["threads"]), row["way"])
        if "failed" in row:
            table.add_row(*head, "-", "-", "-", "-", "-")
            console.print(f"{' '.join(head)}: {row['failed']}", soft_wrap=True)
            continue
        rate = 1e3 * result["patches"] / row["p50_ms"]
        opened = ", ".join(f"{seconds:.2f}" for seconds in row["open_seconds"])
        figures = (f"{row['p50_ms']:.1f}", f"{row['least_ms']:.1f}", f"{rate:.0f}", f"{row['times_onnxruntime']:.2f}")
        table.add_row(*head, *figures, opened)
    console.print(table)
    console.print(
        f"{machine.caption(result['machine'])}\nOpenVINO on this CPU: {', '.join(result['capabilities'])}",
        soft_wrap=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--widths", type=int, nargs="+", metavar="N", default=[8, 16], help="widths of untrained networks (8 16)"
    )
    parser.add_argument(
        "--bundle", type=Path, nargs="+", metavar="DIR", default=[], help="measure these bundles instead"
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        metavar="N",
        default=[1, 2],
        help="threads of the engine, one after the other (1 2)",
    )
    parser.add_argument("--patches", type=int, metavar="N", default=64, help="patches a frame (64)")
    parser.add_argument("--rounds", type=int, metavar="N", default=30, help="frames that each way is measured on (30)")
    parser.add_argument("--quick", action="store_true", help="10 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    options.rounds = min(options.rounds, 10) if options.quick else options.rounds
    if (problem := library.problem()) is not None:
        parser.exit(1, f"this needs OpenVINO: {problem}\n")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(20))  # the gate's words are at this level
    result: dict[str, Any] = {
        "machine": machine.describe(options.threads),
        "capabilities": sorted(library.capabilities()),
        "patches": options.patches,
        "rounds": options.rounds,
        "rows": [],
    }
    with machine.reporting(parser, options.json, result, show), tempfile.TemporaryDirectory() as folder:
        bundles = [read_bundle(path) for path in options.bundle]
        for width in [] if bundles else options.widths:
            print(f"exporting an untrained bundle of width {width}")
            with capture_logs():
                bundles.append(untrained(Path(folder), "int8", width=width))
        run(bundles, options.threads, options.patches, options.rounds, result)


if __name__ == "__main__":
    main()
