"""``station-train export``."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from engines.manifest import MODEL_CARD_FILE
from train.export import export_run
from train.labelled import find_labelled_images

console = Console(stderr=True)


def export(
    run: Annotated[Path, typer.Option("--run", help="Folder of `station-train fit`.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("--out", help="The bundle to write, a folder; replaces a bundle there.", show_default=False),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="The bundle's name; that of --out, if not given.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Labelled images (see `station-train evaluate`) to report on in the model card.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a run into a bundle: one graph from patches to scores, its self-test, and a model card.

    A run may be exported while it still trains; its last checkpoint is taken. The graph must give on ONNX Runtime what
    torch computes in float64, or nothing is written.

    Example: `station-train export --run runs/leather --out bundles/leather`
    """
    labelled = find_labelled_images(data) if data else None
    try:
        with console.status("reading the run") as status:
            bundle = export_run(run, out, name or out.resolve().name, labelled, status.update)
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
