"""What a patch costs in frames of 1 to 4,096 of them: the whole inspection, from the camera's picture to the verdict.

Each frame is as square as it can be and is inspected by ONNX Runtime, and by OpenVINO in float32 and bf16 where it is
installed and computes in them; the engines take turns. "per patch" should be the same in all large frames: what grows
faster than the patches shows here. The stages are the medians of the frames' own clocks. Without --bundle, an untrained
bundle of the default preset is measured, with a map and standards by place, at one pixel of the frame for one of the
patches.

    python -m benchmarks.patches --json benchmarks/results/patches.json
    python -m benchmarks.patches --patches 1 64 --bundle engines/bundled/brick
"""

import argparse
import math
import statistics
import tempfile
from functools import partial
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
from engines.bundle import Bundle, read_bundle
from engines.engine import EngineSettings, UInt8Array
from engines.judging import Judging
from engines.opening import open_engine
from engines.openvino import library
from engines.tiling import Tiler
from station.frames import Inspection
from station.inspection import Inspector
from station.settings import JudgeSettings

PATCHES = (1, 4, 16, 64, 256, 1024, 4096)
STAGES = ("prepare", "infer", "judge")
PIXELS = 2_000_000  # of patches, that each size of frame is measured on at least


def open_inspectors(bundle: Bundle, threads: int, cache: Path) -> dict[str, Inspector]:
    """Inspectors by the name of their engine."""
    wanted = [{"backend": "onnxruntime"}]
    if library.problem() is None:
        wanted += [{"backend": "openvino", "precision": precision} for precision in ("fp32", "bf16")]
    judging, tiler = Judging.of(bundle.manifest), Tiler(bundle.manifest.preprocessing)
    found = {}
    for settings in wanted:
        with capture_logs():  # of precisions that this CPU does not have
            engine = open_engine(bundle, EngineSettings.model_validate({"threads": threads, "cache": cache} | settings))
        found[f"{engine.info.backend} {engine.info.precision}"] = Inspector(engine, tiler, judging, JudgeSettings())
    return found


def make_frame(bundle: Bundle, patches: int) -> UInt8Array:
    """Noise that is cut into so many patches, uint8 (H, W, 3).

    Raises:
        CannotMeasureError: no frame of this bundle has so many.
    """
    pre = bundle.manifest.preprocessing
    rows = max(n for n in range(1, math.isqrt(patches) + 1) if patches % n == 0)
    height, width = (round((pre.patch_size + (n - 1) * pre.stride) / pre.scale) for n in (rows, patches // rows))
    if Tiler(pre).grid((height, width)).n != patches:
        raise machine.CannotMeasureError(
            f"no frame for this bundle has {patches} patches; leave --bundle out, or name other --patches"
        )
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def inspect(inspector: Inspector, frame: UInt8Array, inspections: list[Inspection]) -> None:
    """Inspect a frame once more."""
    inspections.append(inspector.inspect(frame))


def measure(bundle: Bundle, options: argparse.Namespace, cache: Path, result: dict[str, Any]) -> None:
    """Fills ``result`` as it goes, so that Ctrl-C keeps what is there."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("opening the engines", total=len(options.threads) * len(options.patches))
        for threads in options.threads:
            inspectors = open_inspectors(bundle, threads, cache / str(threads))
            for n in options.patches:
                progress.update(task, description=f"threads {threads}: {n} patches a frame")
                frame = make_frame(bundle, n)
                shown: dict[str, list[Inspection]] = {name: [] for name in inspectors}
                ms = machine.in_turns(
                    {name: partial(inspect, inspectors[name], frame, shown[name]) for name in inspectors},
                    rounds=max(3, min(options.rounds, PIXELS // frame[..., 0].size)),
                    warm_up=1,
                )
                for name, inspections in shown.items():
                    stages = {
                        stage: round(statistics.median(i.ms[stage] for i in inspections[1:]) / n, 4) for stage in STAGES
                    }
                    row = {"threads": threads, "engine": name, "patches": n, "ms": machine.median(ms[name])}
                    result["rows"].append(row | {"ms_per_patch": round(row["ms"] / n, 4), **stages})
                progress.advance(task)


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"{result['bundle']}: milliseconds", box=None)
    for column in ("threads", "engine", "patches", "a frame", "per patch", *STAGES):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in result["rows"]:
        figures = (f"{row[key]:.3f}" for key in ("ms_per_patch", *STAGES))
        table.add_row(str(row["threads"]), row["engine"], f"{row['patches']:,}", f"{row['ms']:.1f}", *figures)
    console = machine.console()
    console.print(table)
    console.print(machine.caption(result["machine"]), soft_wrap=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="measure this one instead of an untrained one")
    parser.add_argument(
        "--patches", type=int, nargs="+", metavar="N", default=PATCHES, help="a frame (1 4 16 64 256 1024 4096)"
    )
    every = machine.all_threads()
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", default=[every], help="one for each CPU")
    parser.add_argument("--rounds", type=int, metavar="N", help="frames of each size, at most (50; quick: 15)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    options.rounds = options.rounds or (15 if options.quick else 50)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    result: dict[str, Any] = {"machine": machine.describe(options.threads), "rows": []}
    with machine.reporting(parser, options.json, result, show), tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        bundle = read_bundle(options.bundle) if options.bundle else untrained(home, scale=1.0)
        result["bundle"] = bundle.manifest.name
        measure(bundle, options, home / "cache", result)


if __name__ == "__main__":
    main()
