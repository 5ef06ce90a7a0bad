"""What the daemon tells systemd (sd_notify(3)); does nothing when systemd did not start us with Type=notify."""

import os
import socket
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Notifier:
    """The line to the service manager.

    Attributes:
        address: the datagram socket's path; a leading ``@`` is Linux's abstract name space; None: no systemd.
        watchdog_seconds: ``WatchdogSec=`` of the unit; None: not watched.
    """

    address: str | None = None
    watchdog_seconds: float | None = None

    def notify(self, **fields: str | int) -> None:
        """Send assignments, for instance ``notify(READY=1, STATUS="inspecting")``."""
        if self.address is None:
            return
        path = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        message = "\n".join(f"{key}={' '.join(str(value).split())}" for key, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as wire:
                wire.settimeout(0.2)  # a manager that does not read must not hold up the line
                wire.sendto(message.encode(), path)
        except OSError as error:
            log.warning("systemd is not listening", error=str(error))


def from_environment() -> Notifier:
    """The notifier that NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID ask for."""
    watched_pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    watched = microseconds.isdigit() and int(microseconds) > 0 and watched_pid == str(os.getpid())
    return Notifier(
        address=os.environ.get("NOTIFY_SOCKET") or None,
        watchdog_seconds=int(microseconds) / 1e6 if watched else None,
    )
