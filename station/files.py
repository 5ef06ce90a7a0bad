"""Writing files so that a reader, or a power cut, never meets half of one."""

import os
from contextlib import suppress
from pathlib import Path

from engines.files import write_whole


class OutputError(Exception):
    """A file cannot be written; the message names it and says why."""


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write ``data`` beside ``path`` and rename it into place; makes missing folders.

    Args:
        path: where; replaced if it is there.
        data: what.
        mode: permissions, less the umask.

    Raises:
        OutputError: disk full, no permission; ``path`` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, mode)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Have new names in the folder outlive a power cut, where its file system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
