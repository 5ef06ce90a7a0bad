"""The station's state folder, and that no other station uses it."""

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import final

import structlog

from station.outbox import Outbox
from station.settings import OutboxSettings

log = structlog.get_logger(__name__)

LOCK = "lock"


class StateError(Exception):
    """Another station uses the state folder; the message says what to do."""


@final
class StateFolder:
    """What survives a restart, held by one process, inside a ``with`` block.

    A folder that cannot be written is no reason not to inspect: the outbox then works in memory and says so.

    Attributes:
        folder: where.
        outbox: alerts and pictures on their way to the broker.
    """

    def __init__(self, folder: Path, outbox: OutboxSettings) -> None:
        """Make the folder, take its lock and open the outbox.

        Raises:
            StateError: another process has the lock.
        """
        self.folder = folder
        self._lock = lock_folder(folder)
        self.outbox = Outbox(folder, outbox)

    def close(self) -> None:
        """Let others have it."""
        self.outbox.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "StateFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_ADVICE = (
    "is this one running already, or do two have the same [station] site, line and name? Stop the other, or set "
    "`state` to a folder of its own"
)


def lock_folder(folder: Path, who: str = "station", advice: str = _ADVICE) -> int | None:
    """Make a state folder and take its lock, for this process alone.

    Args:
        folder: where.
        who: what works with it, in words.
        advice: what to do when another does already.

    Returns:
        A descriptor that holds the lock; the kernel frees it however the process ends. None: cannot be locked.

    Raises:
        StateError: another process has the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.warning("the state folder cannot be written", folder=str(folder), reason=error.strerror)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StateError(f"{folder}: another {who} works with this state folder; {advice}") from None
        log.warning("the state folder cannot be locked", folder=str(folder), reason=error.strerror)
        return None
    return descriptor
