"""``station inspect``: image files in, scores out."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engines.bundle import read_bundle
from engines.engine import EngineSettings
from engines.errors import ImageError
from engines.images import find_images
from engines.judging import Judging
from engines.opening import open_engine
from engines.pictures import encode_jpeg
from engines.tiling import Tiler
from station import logs
from station.calibration import Calibration, load_calibration
from station.commands.building import show_building
from station.commands.files import Inspected, inspect_files, make_progress
from station.files import write_file
from station.heatmap import draw
from station.inspection import Inspector
from station.judge import Region, find_regions, low_level
from station.settings import AlertSettings, JudgeSettings, LogSettings

ENGINES: tuple[str, ...] = get_args(EngineSettings.model_fields["backend"].annotation)
EXIT_UNREADABLE = 1
EXIT_INTERRUPTED = 130


class _Row(NamedTuple):
    name: str
    score: float
    defects: int
    ms: float


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH…", help="Image files, or folders to search for them.", show_default=False),
    ],
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="The trained bundle.", show_default=False)],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="calibration.json; without it there are scores but no verdicts. Its region of interest is used too.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(metavar="NAME", autocompletion=lambda: list(ENGINES), help=f"Back end: {', '.join(ENGINES)}."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file and line.")] = False,
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a JPEG per file there, with heatmap, boxes and verdict; subfolders are kept.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Score image files with a bundle: no camera, no broker.

    A file that cannot be inspected is named on standard error and the others
    go on; the exit code is then 1. Otherwise it is 0, defects found or not.

    Example: [cyan]station inspect --bundle bundle --calibration calibration.json --heatmaps out images/[/]
    """
    if engine not in ENGINES:
        raise typer.BadParameter(f"is none of {', '.join(ENGINES)}", param_hint="--engine")
    logs.set_up(LogSettings(level="warning"))
    err = Console(stderr=True)
    opened = read_bundle(bundle)
    calibrated = load_calibration(calibration, opened) if calibration else None
    files = _expand(paths)
    folder = os.path.commonpath([path.absolute().parent for path in files])
    rows: list[_Row] = []
    interrupted = False
    with show_building(err) as on_progress:
        used = open_engine(opened, EngineSettings.model_validate({"backend": engine}), on_progress)
    try:
        roi = calibrated.camera.roi if calibrated else None
        tiler = Tiler(opened.manifest.preprocessing, roi.box if roi else None)
        inspector = Inspector(used, tiler, Judging.of(opened.manifest), _judge(calibrated))
        with make_progress(err) as progress:
            task = progress.add_task("inspecting", total=len(files))
            for found in inspect_files(files, inspector, progress, task):
                defects = _defects(found, calibrated)
                ms = sum(found.inspection.ms.values())
                if as_json:
                    print(json.dumps(_record(found, calibrated, ms)), flush=True)
                if heatmaps:
                    # The suffix stays in the name: a.png and a.jpg may lie side by side.
                    relative = Path(found.name).absolute().relative_to(folder)
                    _write_heatmap(heatmaps / f"{relative}.jpg", found, calibrated, defects)
                rows.append(_Row(found.name, found.inspection.score, len(defects), ms))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        used.close()
    if not as_json:
        _print_table(rows, calibrated)
    if heatmaps and rows:
        err.print(f"{len(rows)} pictures are in {escape(str(heatmaps))}", highlight=False, soft_wrap=True)
    if interrupted:
        err.print(f"Interrupted: {len(rows)} of {len(files)} files are done.", highlight=False)
        raise typer.Exit(EXIT_INTERRUPTED)
    if len(rows) < len(files):
        err.print(f"{len(files) - len(rows)} of {len(files)} files could not be inspected.", highlight=False)
        raise typer.Exit(EXIT_UNREADABLE)


def _expand(paths: Sequence[Path]) -> list[Path]:
    """All files meant, each once, in the order given.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            images = find_images(path)
            if not images:
                raise ImageError(f"{path}: holds no PNG, JPEG, BMP or TIFF image")
            files.update(dict.fromkeys(images))
        else:
            files[path] = None
    return list(files)


def _judge(calibration: Calibration | None) -> JudgeSettings:
    if calibration is None:
        return JudgeSettings()
    return JudgeSettings(frame_score=calibration.frame_score, top_k=calibration.top_k)


def _defects(found: Inspected, calibration: Calibration | None) -> list[Region]:
    """What the station would raise alerts for, with its default hysteresis."""
    if calibration is None or found.inspection.score <= calibration.threshold:
        return []
    low = low_level(calibration.threshold, calibration.good.median, AlertSettings().hysteresis)
    return [r for r in find_regions(found.inspection, low) if r.score > calibration.threshold]


def _record(found: Inspected, calibration: Calibration | None, ms: float) -> dict[str, Any]:
    inspection = found.inspection
    boxes = (inspection.grid.box(index) for index in range(inspection.grid.n))
    return {
        "path": found.name,
        "score": inspection.score,
        "threshold": calibration.threshold if calibration else None,
        "anomalous": inspection.score > calibration.threshold if calibration else None,
        "patches": [
            {**box._asdict(), "score": float(score)} for box, score in zip(boxes, inspection.patch_scores, strict=True)
        ],
        "ms": round(ms, 3),
    }


def _write_heatmap(path: Path, found: Inspected, calibration: Calibration | None, defects: Sequence[Region]) -> None:
    threshold = calibration.threshold if calibration else None
    picture = draw(found.image, found.inspection, threshold, [region.box for region in defects])
    alerts = AlertSettings()
    write_file(path, encode_jpeg(picture, alerts.image_max_side, alerts.image_quality))


def _print_table(rows: Sequence[_Row], calibration: Calibration | None) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = max((len(row.name) for row in rows), default=0) + 60  # one file, one line: for grep
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("score", justify="right")
    if calibration:
        table.add_column("verdict")
        table.add_column("defects", justify="right")
    table.add_column("ms", justify="right")
    anomalous = 0
    for row in rows:
        cells = [escape(row.name), f"{row.score:.5g}"]
        if calibration:
            bad = row.score > calibration.threshold
            anomalous += bad
            cells += ["[bold red]DEFECT[/]" if bad else "[green]good[/]", str(row.defects) if row.defects else ""]
        table.add_row(*cells, f"{row.ms:.1f}")
    console.print(table)
    if calibration and rows:
        console.print(
            f"{anomalous} of {len(rows)} files score above the threshold of {calibration.threshold:.5g}.",
            highlight=False,
        )
