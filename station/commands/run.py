"""``station run``: the daemon."""

from pathlib import Path
from typing import Annotated

import typer

from station.settings import load_settings


def run(
    config: Annotated[Path, typer.Option(help="Settings file, TOML.", show_default=False)],
) -> None:
    """Inspect the camera's frames and publish scores and alerts, until told to stop."""
    load_settings(config)
