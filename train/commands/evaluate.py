"""``station-train evaluate``."""

# ruff: noqa: PLC0415 - torch takes seconds to load, for which neither --help nor Tab shall wait

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from engines.bundle import Bundle, read_bundle
from engines.engine import EngineSettings
from engines.opening import open_engine
from train.labelled import LabelledImage, find_labelled_images

if TYPE_CHECKING:
    from train.evaluate import Evaluation, FrameScorer, Metrics

REPORT_FILE = "report.json"
SHEET_FILE = "cases.png"

console = Console(stderr=True)


def evaluate(
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="DIR", help="What `station-train export` wrote.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Labelled images: test/good/, test/DEFECT/ and, for pixel metrics, ground_truth/DEFECT/*_mask.png.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for evaluation.html, report.json and cases.png; BUNDLE-evaluation, beside the bundle, if not "
            "given.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Measure a bundle on labelled images: auROC, balanced accuracy, pixel auROC, AU-PRO, per type of defect.

    Images are cut and scored as on the line, by the engine that would run there; a frame's score is that of its worst
    patch. The folder of the report holds a page with curves, the table and the best and worst cases (evaluation.html),
    every image's score, and a picture of these cases.

    Example: `station-train evaluate --bundle bundles/leather --data images`
    """
    from train.evaluate import FrameScorer
    from train.evaluation_page import render
    from train.graph import open_reconstructor
    from train.model_card import EVALUATION_FILE
    from train.sheet import draw_sheet, pick_cases, show

    place = bundle.resolve()
    target = (out or place.with_name(f"{place.name}-evaluation")).resolve()
    if target.is_relative_to(place):
        raise typer.BadParameter(
            "the report must not lie inside the bundle, whose files are hashed", param_hint="--out"
        )
    images = find_labelled_images(data)
    loaded = read_bundle(bundle)
    engine = open_engine(loaded, EngineSettings())
    try:
        scorer = FrameScorer(loaded.manifest, engine)
        result = _evaluate(images, scorer)
        shown = show(pick_cases(result), scorer, open_reconstructor(loaded.scorer))
    finally:
        engine.close()
    target.mkdir(parents=True, exist_ok=True)
    (target / SHEET_FILE).write_bytes(draw_sheet(shown))
    page = render(loaded.manifest, result, shown, digest=loaded.digest, data=str(data), notes=notes(result))
    (target / EVALUATION_FILE).write_text(page, encoding="utf-8")
    (target / REPORT_FILE).write_text(json.dumps(_report(loaded, data, result), indent=2) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(result.as_json()))
    else:
        Console().print(make_table(loaded.manifest.name, result))
    for line in notes(result):
        console.print(f"[yellow]note[/] {escape(line)}", highlight=False)
    console.print(
        f"to look at: {target / EVALUATION_FILE}\nevery image's score: {target / REPORT_FILE}\n"
        f"worst and best cases: {target / SHEET_FILE}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def make_table(name: str, result: "Evaluation") -> Table:
    """The metrics as a table, all defects first."""
    table = Table(title=f"{name}: {result.n_good} good and {result.overall.n_anomalous} defective images")
    table.add_column("\ndefect", overflow="fold")
    for heading in ("\nimages", "image\nauROC", "balanced\naccuracy", "pixel\nauROC", "\nAU-PRO"):
        table.add_column(heading, justify="right")
    table.add_row("all", *_cells(result.overall), style="bold", end_section=True)
    for defect, metrics in result.per_defect.items():
        table.add_row(escape(defect), *_cells(metrics))
    return table


def notes(result: "Evaluation") -> list[str]:
    """What a reader of the figures must know."""
    lines = ["the threshold of the balanced accuracy is chosen on these images; calibrate sets the station's own"]
    if result.without_mask:
        lines.append(f"{len(result.without_mask)} defective images have no mask and are left out of pixel metrics")
    if result.empty_mask:
        names = ", ".join(path.name for path in result.empty_mask[:5])
        more = ", …" if len(result.empty_mask) > 5 else ""
        lines.append(
            f"{len(result.empty_mask)} defective images have an empty mask and are left out of pixel metrics: "
            f"{names}{more}"
        )
    return lines


def _cells(metrics: "Metrics") -> list[str]:
    return [str(metrics.n_anomalous), *("–" if v is None else f"{v:.4f}" for v in metrics.as_json().values())]


def _evaluate(images: list[LabelledImage], scorer: "FrameScorer") -> "Evaluation":
    from train.evaluate import evaluate as evaluate_images

    columns = (SpinnerColumn(), TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(images))
        return evaluate_images(images, scorer, lambda: progress.advance(task))


def _report(bundle: Bundle, data: Path, result: "Evaluation") -> dict[str, Any]:
    """What is printed with --json, and what it was made from."""
    return {
        **result.as_json(),
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.digest},
        "data": str(data),
        "notes": notes(result),
        "images": [{"path": str(image.path), "defect": image.defect, "score": score} for image, score in result.scored],
    }
