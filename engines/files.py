"""Reading and writing files where half of one, a pipe or a link would do harm."""

import errno
import os
import secrets
import stat
from pathlib import Path


def write_whole(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write ``data`` beside ``path`` and rename it into place: a reader, or a power cut, never meets half of it.

    Args:
        path: where; replaced if it is there.
        data: what.
        mode: permissions, less the umask.

    Raises:
        OSError: disk full, no permission; ``path`` is then as it was.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def open_regular(path: str, flags: int) -> int:
    """For ``opener=`` of ``open``: no link is followed, and a pipe is an error instead of waiting for ever.

    Raises:
        OSError: not a regular file, or it cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor
