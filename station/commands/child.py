"""``station`` commands as processes of their own: what the demo and the measurements look at from outside."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from station.settings import ENV_PREFIX

_STOP_TIMEOUT = 5.0  # seconds
_NOTHING: Mapping[str, str] = {}


@contextmanager
def station_process(
    *arguments: str, log: Path, more: Mapping[str, str] = _NOTHING, module: str = "station"
) -> Iterator["subprocess.Popen[bytes]"]:
    """The ``station`` command, its output added to ``log``; ended with the block.

    Args:
        arguments: of the command.
        log: a file.
        more: environment variables to set.
        module: that Python runs.
    """
    # A STATION_... variable of the user's own station must not reach this one.
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(ENV_PREFIX)}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment | dict(more),
            start_new_session=True,  # Ctrl-C is for us; we then stop it in its own way
        )
    try:
        yield process
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def last_lines(log: Path) -> list[str]:
    """The end of a log, for an error message."""
    return log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
