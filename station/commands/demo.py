"""``station demo``: all of it on one machine."""

from pathlib import Path
from typing import Annotated

import typer

from station.demo.training_images import write_training_images


def demo(
    training_images: Annotated[
        Path | None,
        typer.Option(
            "--write-training-images",
            metavar="DIR",
            help="Only write the pictures that the bundled engine is trained and evaluated on, in MVTec AD layout.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run all of it on this machine: a sample line with planted defects, the daemon and a broker."""
    if training_images is not None:
        write_training_images(training_images)
