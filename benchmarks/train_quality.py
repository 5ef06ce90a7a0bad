"""Detection quality after training from scratch, over several seeds: fit, export and evaluate, each as a user would.

The honest protocol: nothing is chosen on test images. Options after ``--`` go to ``station-train fit``.

    python benchmarks/train_quality.py --data DATA --seeds 0 1 2 --json results/NAME.json -- --minutes 15
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

METRICS = ("image_auroc", "balanced_accuracy", "pixel_auroc", "au_pro")


def station_train(*args: str | Path) -> str:
    """Run one command of ``station-train``; what it printed on standard output."""
    command = [sys.executable, "-m", "train", *map(str, args)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(data: Path, seed: int, fit_options: list[str], runs: Path) -> dict[str, Any]:
    """Train with one seed and evaluate, unless that was done; metrics, wall and processor seconds of training."""
    run, bundle, row_file = runs / f"seed{seed}", runs / f"bundle{seed}", runs / f"seed{seed}.json"
    if row_file.is_file():
        return json.loads(row_file.read_text())
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    station_train("fit", "--data", data, "--out", run, "--seed", str(seed), *fit_options)
    wall_seconds = round(time.monotonic() - started, 1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    station_train("export", "--run", run, "--out", bundle, "--name", f"seed{seed}")
    evaluation = json.loads(
        station_train("evaluate", "--bundle", bundle, "--data", data, "--json", "--out", runs / f"evaluation{seed}")
    )
    training = json.loads((bundle / "manifest.json").read_text())["training"]
    row = {
        "seed": seed,
        "steps": training["steps"],
        "wall_seconds": wall_seconds,
        "cpu_seconds": round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 1),
        **evaluation,
    }
    row_file.write_text(json.dumps(row))
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set in MVTec AD layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="keep runs and bundles here, and go on from what is there")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("fit_options", nargs="*", metavar="-- FIT OPTION", help="for station-train fit")
    options = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs or Path(temporary)
        rows = [measure(options.data, seed, options.fit_options, runs) for seed in options.seeds]
    result = {
        "data": options.data.name,
        "fit_options": options.fit_options,
        "protocol": "honest: no test image chose anything",
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "seeds": rows,
        "worst": {m: min(row[m] for row in rows) for m in METRICS},
        "median": {m: statistics.median(row[m] for row in rows) for m in METRICS},
    }
    table = Table(title=f"{options.data.name}, {' '.join(options.fit_options)}")
    for heading in ("seed", "steps", "processor s", *METRICS):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["seed"]), str(row["steps"]), f"{row['cpu_seconds']:.0f}", *(f"{row[m]:.4f}" for m in METRICS)
        )
    console.print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
