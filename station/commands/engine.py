"""``station engine``: what can run a bundle here, and whether it does so rightly."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engines.bundle import Bundle, read_bundle
from engines.engine import EngineSettings
from engines.errors import EngineError
from engines.manifest import MANIFEST_FILE
from engines.opening import Backend, installed_backends
from engines.selftest import run_selftest

app = typer.Typer(
    help="Show what can run a bundle on this machine, and prove that it does so rightly.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command("list")
def list_(
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also tell what this bundle is.", show_default=False)
    ] = None,
) -> None:
    """Show the back ends installed here, the one that 'auto' takes, and what a bundle is.

    Nothing is run; `station engine verify` runs the self-test.
    """
    read = read_bundle(bundle) if bundle else None
    console = Console(highlight=False)
    backends = Table("back end", "version", "device", "'auto'", box=None, pad_edge=False)
    for place, backend in enumerate(installed_backends()):
        backends.add_row(backend.name, backend.version, backend.device, "takes it" if place == 0 else "")
    console.print(backends)
    if read is not None:
        facts = Table.grid(padding=(0, 2, 0, 0))
        for name, value in _facts(read):
            facts.add_row(name, escape(value))
        console.print()
        console.print(facts)


@app.command("verify")
def verify(
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="The trained bundle.", show_default=False)],
) -> None:
    """Check the sha256 of every file of a bundle, and run its self-test on every back end installed here.

    One line each; exit code 1 if anything fails. The self-test scores 16 stored patches and compares the outputs with
    those that the trainer computed in float64.
    """
    read = read_bundle(bundle)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[green]ok[/] {MANIFEST_FILE}: schema {read.manifest.schema_version}, sha256 {read.digest}")
    for name, sha256 in read.manifest.files.items():
        console.print(f"[green]ok[/] {name}: {len(read.files[name]):,} bytes, sha256 {sha256}")
    proved = [_prove(backend, read, console) for backend in installed_backends()]
    if not all(proved):
        raise typer.Exit(1)


def _prove(backend: Backend, bundle: Bundle, console: Console) -> bool:
    try:
        engine = backend.open(bundle, EngineSettings(), lambda _doing, _share: None)
        try:
            report = run_selftest(engine, bundle)
        finally:
            engine.close()
    except EngineError as error:
        console.print(f"[bold red]failed[/] {backend.name} {backend.version}: {escape(str(error))}")
        return False
    info = engine.info
    console.print(
        f"[green]ok[/] self-test on {info.backend} {info.backend_version} ({info.precision}, {escape(info.device)}): "
        f"largest difference {report.worst:.1e} of {report.tolerance:.0e} allowed, {report.seconds:.2f} s"
    )
    return True


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    pre, training = manifest.preprocessing, manifest.training
    size = f"frames resized to {pre.frame_size[1]} x {pre.frame_size[0]}" if pre.frame_size else f"scale {pre.scale:g}"
    return [
        ("bundle", str(bundle.path)),
        ("name", f"{manifest.name}, made {manifest.created_at:%Y-%m-%d %H:%M} UTC"),
        ("sha256", bundle.digest),
        ("looks at", f"{manifest.category}, {pre.colour}, {size}"),
        ("patches", f"{pre.patch_size} x {pre.patch_size} pixels every {pre.stride}"),
        ("network", f"width {manifest.network.width}, latent size {manifest.network.latent_size}"),
        ("score", f"alpha {manifest.alpha:g}, lambda {manifest.lambda_:g}, features {manifest.network.feature_layer}"),
        ("trained", f"{training.n_images} images, {training.steps} steps, preset {training.preset}"),
        ("scorer", f"{len(bundle.scorer):,} bytes"),
    ]
