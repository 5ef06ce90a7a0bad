"""``station-train export``."""

# ruff: noqa: PLC0415 - torch takes seconds to load, for which neither --help nor Tab shall wait

from pathlib import Path
from typing import Annotated, cast

import typer
from pydantic import ValidationError
from rich.console import Console

from engines.bundle import SCORER_FILES, Bundle
from engines.engine import EngineSettings, OnProgress, Precision
from engines.manifest import MODEL_CARD_FILE
from engines.opening import tensorrt_problem
from engines.tensorrt import library
from engines.tensorrt.backend import open_tensorrt
from engines.tensorrt.plans import buildable, obtain_plan
from train.labelled import find_labelled_images

PRECISIONS: tuple[str, ...] = tuple(SCORER_FILES)

console = Console(stderr=True)


def export(
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="Folder of `station-train fit`.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="The bundle to write, a folder; replaces a bundle there.", show_default=False
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="The bundle's name; that of --out, if not given.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Labelled images (see `station-train evaluate`) to report on in the model card.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="NAME",
            autocompletion=lambda: list(PRECISIONS),
            help=f"Lowest precision that TensorRT and OpenVINO shall find a graph for: {', '.join(PRECISIONS)}. fp16, "
            "for TensorRT, adds half the size of fp32, int8 as much as fp32 once more. ONNX Runtime needs fp32 only.",
        ),
    ] = "fp16",
    smoothing: Annotated[
        float | None,
        typer.Option(
            "--smoothing",
            metavar="PIXELS",
            min=0.5,
            help="Deviation of the Gaussian over the anomaly map: 1.5 for defects one or two pixels wide, more for "
            "large ones. Default: as the run was told, else 5. Nothing is trained for it.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="Also build the TensorRT plan for this workstation, to try it here. It does not travel: the line's "
            "device builds its own, with `station engine build`.",
        ),
    ] = False,
) -> None:
    """Turn a run into a bundle: one graph from patches to scores, its self-test, and a model card.

    A run may be exported while it still trains; its last checkpoint is taken. The graph must give on ONNX Runtime what
    torch computes in float64, or nothing is written. A graph of lower precision that scores patches otherwise than fp32
    is left out.

    Example: `station-train export --run runs/leather --out bundles/leather`
    """
    from train.export import export_run

    if precision not in PRECISIONS:
        raise typer.BadParameter(f"is none of {', '.join(PRECISIONS)}", param_hint="--precision")
    if engine:
        library.trt()  # or say what to install, before minutes of other work
    lowest = cast("Precision", precision)
    labelled = find_labelled_images(data) if data else None
    try:
        with console.status("reading the run") as status:
            bundle = export_run(run, out, name or out.resolve().name, labelled, lowest, status.update, smoothing)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise typer.BadParameter(
            f"{first['msg']} (got {first['input']!r}); choose another with --name", param_hint="--name"
        ) from error
    size = sum(len(content) for content in bundle.files.values()) / 2**20
    console.print(
        f"[green]done[/]: {bundle.path} ({size:.1f} MiB), sha256 {bundle.digest[:12]}…; read "
        f"{bundle.path / MODEL_CARD_FILE}. Next:\n  station inspect --bundle {bundle.path} IMAGES",
        highlight=False,
        soft_wrap=True,
    )
    if engine:
        with console.status("building the TensorRT plan") as status:
            _build_plan(bundle, lowest, lambda doing, share: status.update(f"TensorRT: {doing}, {share:.0%}"))


def _build_plan(bundle: Bundle, lowest: Precision, on_progress: OnProgress) -> None:
    """Build a plan for this machine, and judge it if there is a GPU."""
    settings = EngineSettings(backend="tensorrt", precision=lowest)
    plan, entry = obtain_plan(bundle, settings, buildable(bundle, lowest)[0], on_progress)
    words = "not tried, as there is no GPU here"
    if tensorrt_problem() is None:
        opened = open_tensorrt(bundle, settings, on_progress)
        words = f"it runs in {opened.info.precision}"
        opened.close()
    device = entry.manifest.facts.device
    console.print(
        f"[green]done[/]: {entry.path} ({len(plan) / 2**20:.1f} MiB), a plan in {entry.manifest.facts.precision} for "
        f"{device.library} {device.version} on this machine only; {words}",
        highlight=False,
        soft_wrap=True,
    )
