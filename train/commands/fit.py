"""``station-train fit``."""

# ruff: noqa: PLC0415 - torch takes seconds to load, for which neither --help nor Tab shall wait

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.main
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from train.config import PRESETS, FitConfig, preset
from train.data import TrainingImages, find_training_images, load_training_images
from train.errors import CheckpointError
from train.methods import METHODS, load

EXIT_INTERRUPTED = 130
DEFAULT_STEPS = 4000  # docs/quality.md: more can be worse
FEW_PATCHES = 4000  # that do not overlap; docs/choosing.md, "How many good pictures"
EXTENDABLE = {"steps", "minutes"}  # what may differ when a run is resumed

console = Console(stderr=True)

DATA, MODEL, TRAINING, RUN = "Images", "Model", "Training", "This run"


def fit(  # noqa: PLR0917 - typer reads options from the signature
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of defect-free images, or a data set in MVTec AD layout (train/good/ is used).",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the run; resumes the run that is there.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ],
    preset_name: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="|".join(PRESETS),
            autocompletion=lambda: list(PRESETS),
            rich_help_panel=MODEL,
            help="'default': warm start by the consistency loss, then the adversarial game; 'reference': the authors' "
            "code; 'paper': the paper's text. Other options override it.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            autocompletion=lambda: list(METHODS),
            rich_help_panel=MODEL,
            help=f"What to train: {', '.join(METHODS)}. All but the first are other rows of the paper's tables, to "
            "compare with. Default: cbigan.",
        ),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            metavar="texture|object",
            autocompletion=lambda: ["texture", "object"],
            rich_help_panel=MODEL,
            help="'texture': 64x64 patches of the image; 'object': the whole image at 128x128.",
        ),
    ] = None,
    frame_size: Annotated[
        str | None,
        typer.Option("--frame-size", metavar="HxW", help="Resize every image, e.g. 512x512.", rich_help_panel=DATA),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", metavar="FACTOR", help="Or scale every image by this factor.", rich_help_panel=DATA),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="PIXELS",
            help="Step between patches on the station; less than 64 overlaps them.",
            rich_help_panel=DATA,
        ),
    ] = None,
    colour: Annotated[
        str | None,
        typer.Option(
            "--colour",
            metavar="auto|rgb|gray",
            autocompletion=lambda: ["auto", "rgb", "gray"],
            help="'auto': gray if all images are.",
            rich_help_panel=DATA,
        ),
    ] = None,
    rotate: Annotated[
        str | None,
        typer.Option(
            "--rotate",
            metavar="LO:HI",
            rich_help_panel=DATA,
            help="Rotate patches at random, degrees counter-clockwise, e.g. -5:5; for material without a direction.",
        ),
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror patches at random.", rich_help_panel=DATA)
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            "--holdout",
            metavar="SHARE",
            rich_help_panel=DATA,
            help="Share of the images that is not trained on: at export they tell what good material scores. "
            "Default: 0.15; none where that is fewer than 6 images.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out unreadable images.", rich_help_panel=DATA)
    ] = False,
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            metavar="N",
            help="Filters of the first block: 3 tiny, 8 default, 64 large.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    folded: Annotated[
        bool | None,
        typer.Option(
            "--folded/--no-folded",
            rich_help_panel=MODEL,
            help="First and last stage of the networks at half the resolution, for half the time. Without: the paper's "
            "networks. Default: with.",
        ),
    ] = None,
    latent_size: Annotated[
        int | None,
        typer.Option("--latent-size", metavar="N", help="Entries of z, the code of a patch.", rich_help_panel=MODEL),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="SHARE",
            help="Weight of the consistency loss: 0 is EGBAD, 1 a double autoencoder.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    lambda_: Annotated[
        float | None,
        typer.Option(
            "--lambda", metavar="SHARE", help="Weight of the feature error in the score.", rich_help_panel=MODEL
        ),
    ] = None,
    feature_layer: Annotated[
        str | None,
        typer.Option(
            "--feature-layer", metavar="NAME", help="Layer of D for the feature error.", rich_help_panel=MODEL
        ),
    ] = None,
    locator: Annotated[
        bool | None,
        typer.Option(
            "--locator/--no-locator",
            rich_help_panel=MODEL,
            help="Plant defects into patches and train a network to find them: its map and the smoothed residual then "
            "judge frames. Without: A(x), the paper's score. Default: with.",
        ),
    ] = None,
    smoothing: Annotated[
        float | None,
        typer.Option(
            "--smoothing",
            metavar="PIXELS",
            rich_help_panel=MODEL,
            help="Deviation of the Gaussian over the locator's map: the larger, the larger the defects looked for.",
        ),
    ] = None,
    warm_start: Annotated[
        float | None,
        typer.Option(
            "--warm-start",
            metavar="SHARE",
            help="Share of the budget for the warm start, 0 to 1.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    warm_lr: Annotated[
        float | None,
        typer.Option("--warm-lr", metavar="RATE", help="Learning rate of the warm start.", rich_help_panel=TRAINING),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="RATE", help="Learning rate of the adversarial phase.", rich_help_panel=TRAINING),
    ] = None,
    locator_lr: Annotated[
        float | None,
        typer.Option("--locator-lr", metavar="RATE", help="Learning rate of the locator.", rich_help_panel=TRAINING),
    ] = None,
    gp_weight: Annotated[
        float | None,
        typer.Option("--gp-weight", metavar="WEIGHT", help="Weight of the gradient penalty.", rich_help_panel=TRAINING),
    ] = None,
    d_iter: Annotated[
        int | None,
        typer.Option(
            "--d-iter",
            metavar="N",
            help="Critic steps per step of E and G; 0: all in every step.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Patches in a step.", rich_help_panel=TRAINING),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Stop after this many steps …", rich_help_panel=RUN)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="MINUTES",
            help=f"… or minutes of training. Default: {DEFAULT_STEPS:,} steps, some ten minutes of one core.",
            rich_help_panel=RUN,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="Same seed, same CPU: same weights (with --steps).", rich_help_panel=RUN
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="honest|paper",
            autocompletion=lambda: ["honest", "paper"],
            rich_help_panel=RUN,
            help="'paper' keeps the weights with the best auROC on the TEST images, as the published figures did; the "
            "bundle's model card then says so.",
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "32-true", "bf16-mixed"],
        typer.Option(
            "--precision",
            metavar="auto|32-true|bf16-mixed",
            help="'auto' takes bf16 where it is faster.",
            rich_help_panel=RUN,
        ),
    ] = "auto",
    devices: Annotated[
        int,
        typer.Option("--devices", metavar="N", min=1, help="GPUs (or CPU processes) to train on.", rich_help_panel=RUN),
    ] = 1,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="CPU threads; 0: one per core.", rich_help_panel=RUN)
    ] = 0,
) -> None:
    """Train a model on defect-free images; resumes the run in --out if there is one.

    No image of a defect is needed. Ctrl-C saves and says how to go on. The run's folder holds the checkpoint, pictures
    of reconstructions (samples/) and curves for TensorBoard (tensorboard/).

    Example: `station-train fit --data images/good --out runs/leather`
    """
    import torch
    from lightning_fabric import Fabric

    from train import checkpoint
    from train.fit import Trainer, train
    from train.memory import keep_freed_memory
    from train.precision import choose_precision
    from train.reporting import RunReporter
    from train.selection import TestSelection

    given = {
        "preset": preset_name,
        "method": method,
        "category": category,
        "frame_size": parse_size(frame_size),
        "scale": scale,
        "stride": stride,
        "colour": colour,
        "rotate": parse_range(rotate),
        "flip": flip,
        "holdout": holdout,
        "width": width,
        "folded": folded,
        "latent_size": latent_size,
        "alpha": alpha,
        "lambda": lambda_,
        "feature_layer": feature_layer,
        "locator": locator,
        "smoothing": smoothing,
        "warm_start": warm_start,
        "warm_lr": warm_lr,
        "lr": lr,
        "locator_lr": locator_lr,
        "gp_weight": gp_weight,
        "d_iter": d_iter,
        "batch_size": batch_size,
        "steps": steps,
        "minutes": minutes,
        "seed": seed,
        "protocol": protocol,
    }
    given = {name: value for name, value in given.items() if value is not None}
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    saved = checkpoint.load(out / checkpoint.CHECKPOINT_FILE) if (out / checkpoint.CHECKPOINT_FILE).is_file() else None
    config = resumed_config(saved["config"], given, out) if saved else new_config(given)
    if devices > 1 and load(config.method).encoder_last:
        raise typer.BadParameter(f"{config.method} trains G and E in turn, on one device; drop --devices")
    images = _load(data, config, skip_bad=skip_bad)
    if saved and saved["fingerprint"] != images.fingerprint:
        raise CheckpointError(
            f"{out} was trained on other images ({len(saved['images'])}; {data} has {len(images.images)}); "
            "give the same --data, or start a new run in another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(accelerator="auto", devices=devices, precision=choose_precision(precision, config))
    fabric.launch()
    trainer = Trainer(config, images, fabric)
    if saved:
        trainer.restore(saved)
        console.print(f"resuming [bold]{out}[/] at step {trainer.step:,}")
    select = TestSelection(data, config, images.colour) if config.protocol == "paper" else None
    with RunReporter(trainer, out, console) as reporter:
        finished = train(trainer, out, on_step=reporter.on_step, select=select)
    if not finished:
        console.print(
            f"stopped and saved at step {trainer.step:,}; to go on:\n  station-train fit --data {data} --out {out}"
        )
        sys.exit(EXIT_INTERRUPTED)
    console.print(
        f"[green]done[/]: {trainer.step:,} steps in {trainer.seconds / 60:.1f} minutes. Next:\n"
        f"  station-train export --run {out} --out bundles/{out.name}"
    )


def parse_arguments(arguments: Sequence[str], place: str) -> dict[str, Any]:
    """What ``fit`` makes of its options, by its parameters, without running it.

    Args:
        arguments: its options, but for --data and --out.
        place: stands in for those two.

    Raises:
        typer.BadParameter: one has a value that it cannot have; likewise other usage errors.
    """
    alone = typer.Typer(add_completion=False)
    alone.command()(fit)
    words = ["--data", place, "--out", place, *arguments]
    with typer.main.get_command(alone).make_context("station-train fit", words) as context:
        return dict(context.params)


def new_config(given: dict[str, Any]) -> FitConfig:
    """Settings of a new run: the preset, overridden by the method, and both by what was given.

    Raises:
        typer.BadParameter: a value is out of range.
    """
    try:
        values: dict[str, Any] = preset(given.get("preset", "default"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--preset") from error
    try:
        method = load(given.get("method", "cbigan"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--method") from error
    values |= {**method.defaults, **method.settings, **given}
    if values.get("category") == "object":
        values.setdefault("frame_size", (128, 128))
    if "steps" not in values and "minutes" not in values:
        values["steps"] = DEFAULT_STEPS
    return _validated(values)


def resumed_config(stored: str, given: dict[str, Any], run: Path) -> FitConfig:
    """Settings of a resumed run: the stored ones; only the budget may be changed.

    Raises:
        typer.BadParameter: another option was given with another value than the run has.
    """
    config = FitConfig.model_validate_json(stored)
    values = config.model_dump(by_alias=True)
    for name, value in given.items():
        if name not in EXTENDABLE and _validated(values | {name: value}) != config:
            raise typer.BadParameter(
                f"{run} was started with {name} = {values[name]}; drop the option to resume it, or start a new run in "
                "another --out",
                param_hint="--" + name.replace("_", "-"),
            )
    budget = {name: given[name] for name in EXTENDABLE if name in given}
    return _validated(values | (dict.fromkeys(EXTENDABLE) | budget if budget else {}))


def _validated(values: dict[str, Any]) -> FitConfig:
    try:
        return FitConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        hint = "--" + name.replace("_", "-") if name else None
        raise typer.BadParameter(
            f"{first['msg']} (got {first['input']})" if name else first["msg"], param_hint=hint
        ) from error


def parse_size(text: str | None) -> tuple[int, int] | None:
    """HEIGHTxWIDTH.

    Raises:
        typer.BadParameter: it is something else.
    """
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise typer.BadParameter(f"{text!r} is not HEIGHTxWIDTH, such as 512x512", param_hint="--frame-size")
    return int(height), int(width)


def parse_range(text: str | None) -> tuple[float, float] | None:
    """LO:HI, or one number for plus and minus that much.

    Raises:
        typer.BadParameter: it is something else.
    """
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        return (float(low), float(high)) if colon else (-abs(float(low)), abs(float(low)))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not LO:HI, such as -5:5", param_hint="--rotate") from error


def _load(data: Path, config: FitConfig, *, skip_bad: bool) -> TrainingImages:
    paths = find_training_images(data)
    columns = (SpinnerColumn(), TextColumn("reading images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(paths))
        for item in load_training_images(paths, config, skip_bad=skip_bad):
            if isinstance(item, TrainingImages):
                images = item
            else:
                progress.update(task, completed=item)
    for line in images.skipped:
        console.print(f"[yellow]left out[/] {line}")
    beside = f", {len(images.held_out)} more are held out" if images.held_out else ""
    console.print(f"{len(images.images)} {images.colour} images from {paths[0].parent}{beside}")
    P = config.architecture.image_size
    patches = sum((image.shape[0] // P) * (image.shape[1] // P) for image in images.images)
    if config.category == "texture" and patches < FEW_PATCHES:
        console.print(
            f"[yellow]They hold {patches:,} patches, which are few[/]: {FEW_PATCHES:,} are better; where there are "
            "no more pictures, --flip may help if the material has no direction (docs/choosing.md)"
        )
    return images
