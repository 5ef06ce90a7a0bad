"""``station engine``: what can run a bundle here, whether it does so rightly, and the plans of this device."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engines import ort
from engines.bundle import Bundle, read_bundle
from engines.cache import Broken, DeviceFacts, Entry, open_cache
from engines.engine import EngineSettings
from engines.errors import EngineError
from engines.manifest import MANIFEST_FILE
from engines.opening import Backend, installed_backends, tensorrt_problem
from engines.openvino import backend as openvino
from engines.openvino import library as openvino_library
from engines.openvino import models
from engines.selftest import run_selftest
from engines.tensorrt import backend as tensorrt
from engines.tensorrt import library
from engines.tensorrt.plans import PRECISIONS, buildable, describe_device, in_turns, obtain_plan
from engines.tiling import Tiler
from station import logs
from station.commands.building import show_building
from station.commands.frames import first_frame, parse_size
from station.commands.plans import describe_plan, how_large, print_plan, state, unusable
from station.settings import LogSettings, load_settings

app = typer.Typer(
    help="Show what can run a bundle on this machine, prove that it does so rightly, and build and keep the plans of "
    "this device: TensorRT's, and what OpenVINO compiles.\n\n"
    "Example: [cyan]station engine verify --bundle bundle[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the plans, as engine.cache in the settings.",
        show_default="$CACHE_DIRECTORY/engines, else ~/.cache/cbigan-station/engines",
    ),
]


@app.command("build")
def build(
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="The trained bundle.", show_default=False)] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings file, TOML, instead of --bundle: bundle, engine and region of interest are taken from it, "
            "and the frames' size from its camera.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=lambda: list(PRECISIONS),
            help=f"Lowest precision: {', '.join(PRECISIONS)}.",
            show_default="engine.precision of --config, else fp16",
        ),
    ] = None,
    frame: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Size of the camera's frames, pixels: the plan is made for as many patches as they have.",
            show_default="the camera's of --config, else the bundle's",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Build even if there is such a plan.")] = False,
    cache: Cache = None,
) -> None:
    """Build the TensorRT plan of a bundle for this device, and show what is in it.

    A plan is code for one GPU and one version of TensorRT, so it is built where
    it runs, and does not travel. It takes minutes on a Jetson. The station would
    do it by itself at its first start; this does it beforehand. OpenVINO needs
    nothing of the kind: it compiles a model within seconds.

    Where there is a GPU, the plan then runs: it must pass the bundle's self-test
    and rank patches as fp32 does, or else the next higher precision is built.
    Without a GPU (TensorRT-RTX builds there too) it is built and shown, and
    that is all: loading it takes NVIDIA's driver.

    Example: [cyan]station engine build --config station.toml[/]
    """
    logs.set_up(LogSettings(level="warning"))
    read, settings = _what_to_build(bundle, config, precision, frame, cache)
    library.trt()  # or say what to install
    no_gpu = tensorrt_problem()
    with show_building(Console(stderr=True)) as on_progress:
        lowest = buildable(read, settings.precision)[0]
        _, entry = obtain_plan(read, settings, lowest, on_progress, rebuild=again)
        key = entry.manifest.facts.key
        if no_gpu is None:
            engine = tensorrt.open_tensorrt(read, settings, on_progress)
            key = engine.info.build_key or key
            engine.close()
    console = Console(highlight=False, soft_wrap=True)
    entries = open_cache(settings).entries()
    print_plan(
        console, next(entry for entry in entries if isinstance(entry, Entry) and entry.manifest.facts.key == key)
    )
    if no_gpu is not None:
        console.print(
            "\n[yellow]Built, not run.[/] Loading a plan takes a GPU and NVIDIA's driver, and here none can be used: "
            f"{escape(no_gpu)}.\nSo neither the self-test nor the ranks were checked. A station with a GPU builds a "
            "plan of its own, and checks both before it serves."
        )


def _what_to_build(
    bundle: Path | None, config: Path | None, precision: str | None, frame: str | None, cache: Path | None
) -> tuple[Bundle, EngineSettings]:
    if (config is None) == (bundle is None):
        raise typer.BadParameter("give either --config FILE or --bundle DIR")
    if precision is not None and precision not in PRECISIONS:
        raise typer.BadParameter(f"is none of {', '.join(PRECISIONS)}", param_hint="--precision")
    size = parse_size(frame, "--frame") if frame else None
    settings, roi = EngineSettings(), None
    if config is not None:
        station = load_settings(config)
        bundle, settings, roi = station.bundle, station.engine, station.camera.roi
        if size is None and settings.max_patches is None:
            size = first_frame(station.camera).image.shape[:2]
    if bundle is None:
        raise AssertionError("unreachable: one of the two was given")
    read = read_bundle(bundle)
    changes: dict[str, object] = {}
    if precision is not None:
        changes["precision"] = precision
    if cache is not None:
        changes["cache"] = cache
    if size is not None:
        tiler = Tiler(read.manifest.preprocessing, roi.box if roi else None)
        try:
            changes["max_patches"] = in_turns(read.manifest, tiler.grid(size).n)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--frame") from error
    return read, settings.model_copy(update=changes)


@app.command("list")
def list_(
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also tell what this bundle is.", show_default=False)
    ] = None,
    cache: Cache = None,
) -> None:
    """Show the back ends that can run a bundle here, the plans of this device, and what a bundle is.

    'auto' takes the first back end. Nothing is run; `station engine verify` runs the self-test.

    Example: [cyan]station engine list --bundle bundle[/]
    """
    read = read_bundle(bundle) if bundle else None
    console = Console(highlight=False, soft_wrap=True)
    backends = Table("back end", "version", "device", "'auto'", box=None, pad_edge=False)
    for place, backend in enumerate(installed_backends()):
        backends.add_row(backend.name, backend.version, backend.device, "takes it" if place == 0 else "")
    console.print(backends)
    if (problem := tensorrt_problem()) is not None:
        builds = "runs no plan here" if library.problem() else f"builds plans here but runs none ({library.name()})"
        console.print(f"\n{tensorrt.NAME} {builds}: {escape(problem)}")
    if (problem := openvino_library.problem()) is not None:
        console.print(f"\n{openvino.NAME} does not run here: {escape(problem)}")
    plans = open_cache(EngineSettings(cache=cache))
    if entries := plans.entries():
        console.print(f"\nPlans in {escape(str(plans.folder))}:")
        for entry in entries:
            console.print(describe_plan(entry, _here(entry)))
    if read is not None:
        facts = Table.grid(padding=(0, 2, 0, 0))
        for name, value in _facts(read):
            facts.add_row(name, escape(value))
        console.print()
        console.print(facts)


@app.command("verify")
def verify(
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="The trained bundle.", show_default=False)],
    cache: Cache = None,
) -> None:
    """Check a bundle, the plans made from it, and every back end that can run it here.

    One line each; exit code 1 if anything fails: the sha256 of every file of
    the bundle; every plan, which must be as this device left it; the
    self-test on every back end, which scores 16 stored patches and compares the
    outputs with those that the trainer computed in float64.

    Example: [cyan]station engine verify --bundle bundle[/]
    """
    logs.set_up(LogSettings(level="warning"))
    read = read_bundle(bundle)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[green]ok[/] {MANIFEST_FILE}: schema {read.manifest.schema_version}, sha256 {read.digest}")
    for name, sha256 in read.manifest.files.items():
        console.print(f"[green]ok[/] {name}: {len(read.files[name]):,} bytes, sha256 {sha256}")
    settings = EngineSettings(cache=cache)
    sound = plans_sound = _verify_plans(read, settings, console)
    for backend in installed_backends():
        if backend.name != ort.NAME and not plans_sound:
            # It would build a new plan in the altered one's place, and with it the trace of what happened would go.
            console.print(f"[yellow]not run[/] {backend.name}: see above; `station engine prune` removes such plans")
        else:
            sound = _prove(backend, read, settings, console) and sound
    if not sound:
        raise typer.Exit(1)


def _verify_plans(bundle: Bundle, settings: EngineSettings, console: Console) -> bool:
    """Plans made from this bundle, and all that are altered: what those were made from cannot be known."""
    sound = True
    for entry in open_cache(settings).entries():
        if isinstance(entry, Broken):
            sound = False
            console.print(f"[bold red]failed[/] plan {escape(entry.reason)}; it will not be loaded")
        elif entry.manifest.bundle_sha256 == bundle.digest:
            facts = entry.manifest.facts
            console.print(
                f"[green]ok[/] plan {entry.path.name}: as it was built ({how_large(facts)}, "
                f"{escape(facts.device.name)}); {escape(state(entry))}"
            )
    return sound


@app.command("prune")
def prune(
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep only the plans of this bundle.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all plans, the good ones too.")] = False,
    cache: Cache = None,
) -> None:
    """Remove plans that cannot be used any more: altered, or made for another device or version.

    One line each. What is missed later is built again.

    Example: [cyan]station engine prune --bundle bundle[/]
    """
    read = read_bundle(bundle) if bundle else None
    console = Console(highlight=False, soft_wrap=True)
    plans = open_cache(EngineSettings(cache=cache))
    kept = 0
    for entry in plans.entries():
        reason = "--all" if everything else _reason_to_remove(entry, read)
        if reason is None:
            kept += 1
        else:
            plans.remove(entry)
            console.print(f"removed {entry.path.stem[:12]}: {escape(reason)}")
    if everything:
        plans.remove_timings()
    console.print(f"{kept} left in {escape(str(plans.folder))}")


def _reason_to_remove(entry: Entry | Broken, keep: Bundle | None) -> str | None:
    if isinstance(entry, Broken):
        return entry.reason
    if keep is not None and entry.manifest.bundle_sha256 != keep.digest:
        return f"made from another bundle, {entry.manifest.bundle_name}"
    return unusable(entry.manifest, _here(entry))


def _here(entry: Entry | Broken) -> DeviceFacts | None:
    """What the plan's library makes plans for here; None: it is not here, so nobody knows."""
    if isinstance(entry, Entry) and entry.manifest.facts.device.library == openvino_library.NAME:
        return None if openvino_library.problem() else models.describe_device()
    return None if library.problem() else describe_device()


def _prove(backend: Backend, bundle: Bundle, settings: EngineSettings, console: Console) -> bool:
    try:
        with show_building(Console(stderr=True)) as on_progress:
            engine = backend.open(bundle, settings, on_progress)
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
    pre, network, training = manifest.preprocessing, manifest.network, manifest.training
    size = f"frames resized to {pre.frame_size[1]} x {pre.frame_size[0]}" if pre.frame_size else f"scale {pre.scale:g}"
    return [
        ("bundle", str(bundle.path)),
        ("name", f"{manifest.name}, made {manifest.created_at:%Y-%m-%d %H:%M} UTC"),
        ("sha256", bundle.digest),
        ("looks at", f"{manifest.category}, {pre.colour}, {size}"),
        ("patches", f"{pre.patch_size} x {pre.patch_size} pixels every {pre.stride}"),
        ("network", f"width {network.width}{', folded' * network.folded}, latent size {network.latent_size}"),
        ("score", f"alpha {manifest.alpha:g}, lambda {manifest.lambda_:g}, features {network.feature_layer}"),
        ("trained", f"{training.n_images} images, {training.steps} steps, preset {training.preset}"),
        ("scorer", f"{len(bundle.scorer):,} bytes"),
    ]
