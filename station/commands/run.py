"""``station run``: the daemon."""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from station import daemon, logs
from station.settings import load_settings


def run(
    config: Annotated[Path, typer.Option(metavar="FILE", help="Settings file, TOML.", show_default=False)],
) -> None:
    """Inspect the camera's frames and publish scores and alerts, until told to stop.

    A video file or a folder is replayed and ends by itself. Exit code 0: stopped, or all alerts of the replay
    delivered; 1: a part failed, or alerts still wait for the broker; 78: the settings cannot be used.

    SIGHUP reads settings, bundle and calibration again. What must survive a restart - alerts that the broker does
    not have yet, a threshold set by command, recent frames - is in the state folder ([bold]state[/] in the settings).

    Example: [cyan]station run --config station.toml[/]
    """
    settings = load_settings(config)
    logs.set_up(settings.log)
    code = 0 if daemon.run(settings, reread=lambda: load_settings(config)) else 1
    if len(threading.enumerate()) > 1:
        # A thread still hangs in a driver. The libraries' own clean-up would wait for it, or pull the ground from
        # under it and crash.
        sys.stdout.flush()
        logging.shutdown()
        os._exit(code)
    raise typer.Exit(code)
