"""What each part of the judgement brings: the same trained models, judged in several ways, over data sets and seeds.

Takes what ``python -m benchmarks.quality --runs RUNS`` left behind and trains nothing. Every way gets standards of its
own, measured on the run's held-out good images; a threshold from good images only is what one in forty of them exceeds.

    python -m benchmarks.judging --runs RUNS --data DATA/grid DATA/tiles --seeds 0 1 2
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import machine
from benchmarks.quality import Cell, as_if_new, good_only_accuracy
from engines.bundle import read_bundle
from engines.engine import Engine, EngineSettings, Float32Array, PatchScores
from engines.images import read_image
from engines.judging import Judging, smoothed, standardised
from engines.manifest import Manifest, Standards
from engines.opening import open_engine
from engines.tiling import PatchGrid, Tiler
from train import checkpoint
from train.labelled import find_labelled_images
from train.metrics import image_metrics
from train.standards import fit_standards


@dataclass(frozen=True)
class Way:
    """One way to judge a frame's map.

    Attributes:
        of: the map of a frame's patches, (N, P, P).
        smooth: whether it is smoothed over the frame.
        place: whether it is told in deviations of its place.
        median: whether the frame's own median is taken off.
    """

    of: Callable[[PatchScores], Float32Array | None]
    smooth: bool = True
    place: bool = False
    median: bool = False


def _map(scores: PatchScores) -> Float32Array | None:
    return scores.anomaly_map


def _residual(scores: PatchScores) -> Float32Array:
    return scores.residual


PAPER = "A(x) of eq. 7, the highest patch"
WAYS: dict[str, Way] = {
    "residual": Way(_residual, smooth=False),
    "residual, smoothed": Way(_residual),
    "residual, smoothed, by place, less the frame's median": Way(_residual, place=True, median=True),
    "anomaly map": Way(_map, smooth=False),
    "anomaly map, smoothed": Way(_map),
    "anomaly map, smoothed, by place": Way(_map, place=True),
    "anomaly map, smoothed, by place, less the frame's median": Way(_map, place=True, median=True),
}
"""The last is what bundles of the default preset are judged by."""


def judge(cell: Cell, runs: Path, on_image: Callable[[], None]) -> list[dict[str, Any]]:
    """Figures of one trained model, one row for each way."""
    bundle = read_bundle(runs / cell.name / "bundle")
    held_out = checkpoint.load_trained(runs / cell.name / "run").held_out
    labelled = find_labelled_images(cell.data)
    engine = open_engine(bundle, EngineSettings(backend="onnxruntime", threads=1))
    try:
        good = list(_frames(bundle.manifest, engine, held_out, on_image))
        test = list(_frames(bundle.manifest, engine, (image.path for image in labelled), on_image))
    finally:
        engine.close()
    defects = [image.defect for image in labelled]
    rows = [_row(cell, PAPER, [frame[PAPER] for frame in good], [frame[PAPER] for frame in test], defects)]
    for name, way in WAYS.items():
        maps = [frame[name] for frame in good]
        if not way.place:
            rows.append(_row(cell, name, [m.max() for m in maps], [frame[name].max() for frame in test], defects))
            continue
        judged = as_if_new(maps, partial(_standards, way))
        unseen = [judged(i, heat) for i, heat in enumerate(maps)]
        standards = _standards(way, maps)
        rows.append(_row(cell, name, unseen, [standardised(frame[name], standards).max() for frame in test], defects))
    return rows


def _frames(
    manifest: Manifest, engine: Engine, paths: Iterable[Path], on_image: Callable[[], None]
) -> Iterable[dict[str, Any]]:
    """For each image the highest A(x) of its patches, and its map by way before standards."""
    tiler = Tiler(manifest.preprocessing)
    sigma = manifest.smoothing
    if sigma is None:
        raise SystemExit(f"{manifest.name}: has no anomaly map; only the default preset's models are judged by one")
    paper = replace(Judging.of(manifest), smoothing=None)
    for path in paths:
        image = read_image(path)
        grid: PatchGrid = tiler.grid((image.shape[0], image.shape[1]))
        scores = engine.score(tiler.patches(tiler.prepare(image)))
        frame: dict[str, Any] = {PAPER: float(paper(scores, grid).patch_scores.max())}
        made: dict[tuple[Any, bool], Any] = {}  # ways that differ only in their standards share a map
        for name, way in WAYS.items():
            if (way.of, way.smooth) not in made:
                patches = way.of(scores)
                assert patches is not None  # noqa: S101 - the manifest says that there is a map
                heat = grid.assemble(patches)
                made[way.of, way.smooth] = (smoothed(heat, sigma) if way.smooth else heat).astype(np.float16)
            frame[name] = made[way.of, way.smooth]
        yield frame
        on_image()


def _standards(way: Way, maps: Iterable[Any]) -> Standards:
    standards = fit_standards(m.astype(np.float32) for m in maps)
    return standards if way.median else standards.model_copy(update={"medians": None})


def _row(cell: Cell, way: str, good: list[Any], test: list[Any], defects: list[str | None]) -> dict[str, Any]:
    normal = [float(score) for score, defect in zip(test, defects, strict=True) if defect is None]
    wrong = [float(score) for score, defect in zip(test, defects, strict=True) if defect is not None]
    return {
        "data": cell.data.name,
        "seed": cell.seed,
        "way": way,
        "image_auroc": image_metrics(normal, wrong).auroc,
        "good_only_accuracy": good_only_accuracy([float(score) for score in good], normal, wrong),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="as left by benchmarks.quality --runs")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="the data sets that were trained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    console = Console(highlight=False)
    cells = [Cell(data, "cbigan", seed) for data in options.data for seed in options.seeds]
    rows: list[dict[str, Any]] = []
    with Progress(console=console) as progress:
        for cell in cells:
            task = progress.add_task(cell.name, total=None)
            rows += judge(cell, options.runs, lambda task=task: progress.advance(task))  # type: ignore[misc]
    for data in options.data:
        table = Table("judged by", title=f"{data.name}: mean (worst) over seeds")
        for heading in ("image auROC", "from good images only"):
            table.add_column(heading, justify="right")
        for way in (PAPER, *WAYS):
            of_way = [row for row in rows if row["way"] == way and row["data"] == data.name]
            figures = ([row[figure] for row in of_way] for figure in ("image_auroc", "good_only_accuracy"))
            table.add_row(way, *(f"{statistics.mean(values):.3f} ({min(values):.3f})" for values in figures))
        console.print(table)
    if options.json:
        machine.write(options.json, {"seeds": options.seeds, "rows": rows})
        console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
