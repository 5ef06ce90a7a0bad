"""Detection quality: data sets x methods x seeds, each trained, exported and evaluated as a user would.

The honest protocol: weights, scales, standards and threshold come from train/good alone, a part of which is held out
from training; the test images are scored once. Every cell keeps its run, bundle and figures below --runs and is not
done again, so that a benchmark that was stopped goes on.

Without --data it takes two textures that ship with scikit-image, on which nothing was ever chosen.

    python -m benchmarks.quality --short
    python -m benchmarks.quality --data DATA/grid DATA/tiles --seeds 0 1 2 --jobs 2 --runs RUNS -- --steps 4000

Options after ``--`` go to ``station-train fit``. Training seconds are of the loop alone, on one thread; scoring is one
thread of ONNX Runtime on 64 patches (a frame of 512 x 512 pixels), one engine at a time after all training is done.
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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.textures import MATERIALS, write_material
from engines.bundle import Bundle, read_bundle
from engines.engine import Engine, EngineSettings, Float32Array, UInt8Array
from engines.images import find_images, read_image
from engines.judging import standardised
from engines.manifest import Manifest, Standards
from engines.opening import open_engine
from engines.planted import plant_each_kind, planted_spacing
from station.calibration import CalibrationError, calibrate_planted
from train import checkpoint
from train.evaluate import FrameScorer, evaluate
from train.labelled import find_labelled_images
from train.metrics import image_metrics
from train.standards import fit_standards

METHODS: dict[str, list[str]] = {
    "cbigan": [],
    "cbigan-paper-score": ["--no-locator"],
    "egbad": ["--method", "egbad"],
    "ganomaly": ["--method", "ganomaly"],
    "f-anogan": ["--method", "f-anogan"],
    "ae-l2": ["--method", "ae-l2"],
    "ae-ssim": ["--method", "ae-ssim"],
    "double-ae": ["--method", "double-ae"],
}
"""Options of ``station-train fit`` by method. ``cbigan`` is the default preset; beside it, the same judged by A(x)."""

SHORT_STEPS = 600
SHORT_METHODS = ("cbigan", "ae-l2")
METRICS = ("image_auroc", "balanced_accuracy", "good_only_accuracy", "planted_accuracy", "pixel_auroc", "au_pro")
FRAME_PATCHES = 64  # of 64 x 64 pixels
TIMED_FRAMES = 15
FOLDS = 4
FALSE_ALARMS = 1 / 40  # share of good frames that the threshold from good images may call defective


def _deviation(image: UInt8Array) -> float:
    return float(image.std())


def _surroundings(image: UInt8Array) -> float:
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return float(np.abs(cv2.GaussianBlur(grey, (0, 0), 2) - cv2.GaussianBlur(grey, (0, 0), 16)).max())


def _thumbnail(image: UInt8Array) -> Float32Array:
    """16 x 16 pixels, which show no small defect, with mean 0 and length 1."""
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (16, 16), interpolation=cv2.INTER_AREA)
    flat = cv2.GaussianBlur(small.astype(np.float32), (0, 0), 1).ravel()
    flat -= flat.mean()
    return np.asarray(flat / max(float(np.linalg.norm(flat)), 1e-6), np.float32)


def trivial_scores(data: Path) -> dict[str, Callable[[UInt8Array], float]]:
    """What anyone would try first, by name. The last one tells a test that asks for memory rather than for defects."""
    seen = np.stack([_thumbnail(read_image(path)) for path in find_images(data / "train" / "good")])
    return {
        "trivial: deviation of all pixels": _deviation,
        "trivial: largest difference of two blurs": _surroundings,
        "trivial: unlike any training image at 16 x 16 pixels": lambda image: (
            1 - float((seen @ _thumbnail(image)).max())
        ),
    }


@dataclass(frozen=True)
class Cell:
    """One training."""

    data: Path
    method: str
    seed: int

    @property
    def name(self) -> str:
        """As folder."""
        return f"{self.data.name}-{self.method}-{self.seed}"


def station_train(*args: str | Path) -> str:
    """Run one command of ``station-train``; what it printed on standard output.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", "train", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def measure(cell: Cell, fit_options: list[str], runs: Path) -> dict[str, Any]:
    """Figures of a cell, which is trained, exported and evaluated unless that was done."""
    folder = runs / cell.name
    figures = folder / "figures.json"
    if figures.is_file():
        known: dict[str, Any] = json.loads(figures.read_text())
        return known
    run, bundle = folder / "run", folder / "bundle"
    options = [*METHODS[cell.method], *fit_options]
    station_train("fit", "--data", cell.data, "--out", run, "--seed", str(cell.seed), "--threads", "1", *options)
    station_train("export", "--run", run, "--out", bundle, "--name", cell.name, "--precision", "fp32")
    trained = checkpoint.load_trained(run)
    row = {
        "data": cell.data.name,
        "method": cell.method,
        "seed": cell.seed,
        "steps": trained.step,
        "training_seconds": round(trained.seconds, 1),
        **judge(cell.data, read_bundle(bundle), trained.held_out),
    }
    figures.write_text(json.dumps(row))
    return row


def judge(data: Path, bundle: Bundle, held_out: list[Path]) -> dict[str, Any]:
    """What ``station-train evaluate`` measures, and the balanced accuracy at thresholds from good images only.

    ``good_only_accuracy``: at what one in forty of the good images that were not trained on exceeds. The highest of a
    few dozen would be left to the oddest among them. ``planted_accuracy``: at what tells them from the same images with
    planted defects, as ``station calibrate --plant`` does.
    """
    engine = open_engine(bundle, EngineSettings(backend="onnxruntime", threads=1))
    try:
        evaluation = evaluate(find_labelled_images(data), FrameScorer(bundle.manifest, engine))
        good, planted = score_held_out(bundle.manifest, engine, held_out)
    finally:
        engine.close()
    normal = evaluation.scores_of(None)
    wrong = [score for image, score in evaluation.scored if image.defect is not None]
    figures = {**evaluation.as_json(), "held_out": len(good)}
    if good:
        figures["good_only_accuracy"] = good_only_accuracy(good, normal, wrong)
        figures["planted_accuracy"] = planted_accuracy(good, planted, normal, wrong)
    return figures


def good_only_accuracy(good: Sequence[float], normal: Sequence[float], wrong: Sequence[float]) -> float:
    """Balanced accuracy at the threshold that one in forty of the held-out ``good`` scores exceeds."""
    return _accuracy(float(np.quantile(good, 1 - FALSE_ALARMS)), normal, wrong)


def planted_accuracy(
    good: Sequence[float], planted: Sequence[float], normal: Sequence[float], wrong: Sequence[float]
) -> float | None:
    """Balanced accuracy at the threshold that ``planted`` defects call for; None where they are not found at all."""
    try:
        threshold = calibrate_planted(np.asarray(good), np.asarray(planted)).threshold
    except CalibrationError:
        return None
    return _accuracy(threshold, normal, wrong)


def _accuracy(threshold: float, normal: Sequence[float], wrong: Sequence[float]) -> float:
    return float(np.mean(np.asarray(wrong) > threshold) + 1 - np.mean(np.asarray(normal) > threshold)) / 2


def as_if_new(
    maps: Sequence[Float32Array], fit: Callable[[Iterable[Float32Array]], Standards] = fit_standards
) -> Callable[[int, Float32Array], float]:
    """What judges a map of image ``i``: its highest deviation, by standards measured on other images' ``maps``.

    In ``FOLDS`` turns.
    """
    folds = [fit([heat for i, heat in enumerate(maps) if i % FOLDS != fold]) for fold in range(min(FOLDS, len(maps)))]
    return lambda i, heat: float(standardised(heat, folds[i % FOLDS]).max())


def score_held_out(manifest: Manifest, engine: Engine, held_out: list[Path]) -> tuple[list[float], list[float]]:
    """Scores of held-out good images as if they were new, and of some of them with defects planted into them.

    The bundle's standards by place were measured on them, which makes them score less than the next good images will.
    So each is judged by standards that were measured on the others, in ``FOLDS`` turns.
    """
    plain = FrameScorer(manifest.model_copy(update={"standards": None}), engine)
    good = [plain.score(path) for path in held_out]
    rng = np.random.default_rng(0)
    planted = [
        (i, plain.score_image(frame.image))
        for i in range(0, len(good), planted_spacing(len(good)))
        for frame in plant_each_kind(good[i].image, rng, good[i].grid.scale)
    ]
    if manifest.standards is None:
        return [scored.score for scored in good], [scored.score for _, scored in planted]
    judged = as_if_new([scored.heat for scored in good])
    return [judged(i, scored.heat) for i, scored in enumerate(good)], [judged(i, s.heat) for i, s in planted]


def measure_trivial(data: Path) -> list[dict[str, Any]]:
    """What scores without any training reach."""
    images = [(image.defect, read_image(image.path)) for image in find_labelled_images(data)]
    rows = []
    for method, score in trivial_scores(data).items():
        scores = [(defect, score(image)) for defect, image in images]
        good = [value for defect, value in scores if defect is None]
        kinds = sorted({defect for defect, _ in scores if defect is not None})
        by_kind = {kind: [value for defect, value in scores if defect == kind] for kind in kinds}
        whole = image_metrics(good, [value for values in by_kind.values() for value in values])
        rows.append(
            {
                "data": data.name,
                "method": method,
                "image_auroc": whole.auroc,
                "balanced_accuracy": whole.balanced_accuracy,
                "per_defect": {
                    kind: {"image_auroc": image_metrics(good, values).auroc} for kind, values in by_kind.items()
                },
            }
        )
    return rows


def scoring_ms(bundle: Bundle) -> float:
    """Median milliseconds for a frame of 64 patches, one thread of ONNX Runtime."""
    rng = np.random.default_rng(0)
    P = bundle.manifest.preprocessing.patch_size
    patches = rng.integers(0, 256, (FRAME_PATCHES, P, P, 3), dtype=np.uint8)
    engine = open_engine(bundle, EngineSettings(backend="onnxruntime", threads=1))
    try:
        times = []
        for _ in range(TIMED_FRAMES):
            start = time.perf_counter()
            engine.score(patches)
            times.append(time.perf_counter() - start)
    finally:
        engine.close()
    return round(1e3 * statistics.median(times), 1)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and worst over seeds, by data and method, in the order of the rows."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["method"]), []).append(row)
    summary = []
    for (data, method), group in groups.items():
        figures: dict[str, Any] = {"data": data, "method": method, "seeds": len(group)}
        for metric in METRICS:
            values = [row[metric] for row in group if row.get(metric) is not None]
            figures[metric] = {"mean": statistics.mean(values), "worst": min(values)} if values else None
        figures["per_defect"] = {
            kind: statistics.mean(row["per_defect"][kind]["image_auroc"] for row in group)
            for kind in group[0]["per_defect"]
        }
        seconds = [row["training_seconds"] for row in group if "training_seconds" in row]
        figures["training_seconds"] = statistics.median(seconds) if seconds else None
        figures["scoring_ms"] = group[0].get("scoring_ms")
        summary.append(figures)
    return summary


def tables(summary: list[dict[str, Any]]) -> Iterable[Table]:
    """The summary, and image auROC by type of defect, for each data set."""
    for data in dict.fromkeys(row["data"] for row in summary):
        rows = [row for row in summary if row["data"] == data]
        table = Table(title=f"{data}: mean (worst) over seeds")
        kinds = Table(title=f"{data}: image auROC by type of defect, mean over seeds")
        for heading in ("method", "seeds", *METRICS, "training s", "scoring ms"):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        for heading in ("method", *rows[0]["per_defect"]):
            kinds.add_column(heading, justify="left" if heading == "method" else "right")
        for row in rows:
            cells = ["" if (f := row[metric]) is None else f"{f['mean']:.3f} ({f['worst']:.3f})" for metric in METRICS]
            seconds, ms = row["training_seconds"], row["scoring_ms"]
            table.add_row(
                row["method"],
                str(row["seeds"]),
                *cells,
                "" if seconds is None else f"{seconds:.0f}",
                "" if ms is None else f"{ms:.0f}",
            )
            kinds.add_row(row["method"], *(f"{auroc:.3f}" for auroc in row["per_defect"].values()))
        yield table
        yield kinds


def benchmark(datasets: list[Path], options: argparse.Namespace, runs: Path, console: Console) -> list[dict[str, Any]]:
    """Measure all cells, some at a time; rows of figures."""
    cells = [Cell(data, method, seed) for data in datasets for method in options.methods for seed in options.seeds]
    rows = [row for data in datasets for row in measure_trivial(data)]
    with Progress(console=console) as progress, ThreadPoolExecutor(options.jobs) as pool:
        task = progress.add_task("trainings", total=len(cells))

        def work(cell: Cell) -> dict[str, Any] | None:
            try:
                return measure(cell, options.fit_options, runs)
            except RuntimeError as error:
                console.print(f"[red]{cell.name} failed[/]: {error}", highlight=False)
                return None
            finally:
                progress.advance(task)

        done = [row for row in pool.map(work, cells) if row is not None]
    times: dict[str, float] = {}
    for row in done:
        bundle = runs / Cell(Path(row["data"]), row["method"], row["seed"]).name / "bundle"
        if row["method"] not in times:
            times[row["method"]] = scoring_ms(read_bundle(bundle))
        row["scoring_ms"] = times[row["method"]]
    return rows + done


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="data sets in MVTec AD layout; default: two textures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trainings at a time")
    parser.add_argument("--runs", type=Path, help="keep runs and bundles here, and go on from what is there")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--short", action="store_true", help=f"{SHORT_STEPS} steps of {' and '.join(SHORT_METHODS)}")
    parser.add_argument("fit_options", nargs="*", metavar="-- FIT OPTION", help="for station-train fit")
    options = parser.parse_args()
    options.methods = options.methods or list(SHORT_METHODS if options.short else METHODS)
    if options.short:
        options.fit_options = ["--steps", str(SHORT_STEPS), *options.fit_options]
    console = Console(highlight=False)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        datasets = options.data or [write_material(name, runs / "textures") for name in MATERIALS]
        rows = benchmark(datasets, options, runs, console)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = summarise(rows)
    for table in tables(summary):
        console.print(table)
    result = {
        "fit_options": options.fit_options,
        "protocol": "honest: no test image chose anything",
        "torch": torch.__version__,
        "onnxruntime": version("onnxruntime"),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "jobs": options.jobs,
        "cpu_seconds": round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime),
        "summary": summary,
        "rows": rows,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
