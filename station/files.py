"""Writing files so that a reader, or a power cut, never meets half of one."""

import os
import secrets
from pathlib import Path


class OutputError(Exception):
    """A file cannot be written; the message names it and says why."""


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place; makes missing folders.

    Raises:
        OutputError: disk full, no permission; ``path`` is then as it was.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
