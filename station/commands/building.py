"""A bar while an engine is made ready, which may take minutes where TensorRT builds a plan."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from engines.engine import OnProgress


@contextmanager
def show_building(console: Console) -> Iterator[OnProgress]:
    """For ``open_engine``. Nothing is seen if nothing is built, or if ``console`` is no terminal."""
    with Progress(
        TextColumn("preparing the engine"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=1.0, visible=False)

        def on_progress(doing: str, share: float) -> None:
            progress.update(task, completed=share, description=doing, visible=True)

        yield on_progress
