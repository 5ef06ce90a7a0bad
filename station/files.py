"""Writing files so that a reader, or a power cut, never meets half of one."""

import os
import secrets
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place; makes missing folders.

    Raises:
        OSError: disk full, no permission; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
