"""What ``inspect`` and ``calibrate`` share: a progress bar, and image files through the inspector."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from engines.engine import UInt8Array
from engines.errors import ImageError
from engines.images import read_image
from station.frames import Inspection
from station.inspection import Inspector


class Inspected(NamedTuple):
    """One image that could be inspected.

    Attributes:
        name: path of its file, or of the frame's origin; "" for a live camera.
        image: uint8 (H, W, 3), BGR.
        inspection: of this image.
    """

    name: str
    image: UInt8Array
    inspection: Inspection


def make_progress(console: Console) -> Progress:
    """A bar with count and time left; hidden where ``console`` is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def inspect_files(files: Iterable[Path], inspector: Inspector, progress: Progress, task: TaskID) -> Iterator[Inspected]:
    """Inspect files one by one; those that cannot be read or are too small are told on the console and left out."""
    for path in files:
        try:
            image = read_image(path)
        except ImageError as error:
            complain(progress.console, str(error))
        else:
            try:
                yield Inspected(str(path), image, inspector.inspect(image))
            except ValueError as error:
                complain(progress.console, f"{path}: {error}")
        progress.advance(task)


def complain(console: Console, message: str) -> None:
    """One line that stands out."""
    console.print(f"[bold red]left out[/] {escape(message)}", highlight=False, soft_wrap=True)
