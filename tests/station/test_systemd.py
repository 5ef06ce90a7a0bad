import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from station import systemd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        yield manager


def test_assignments_one_a_line_and_no_line_can_be_smuggled_in(manager: socket.socket) -> None:
    notifier = systemd.Notifier(manager.getsockname())
    notifier.notify(READY=1, STATUS="degraded: no\nMAINPID=1")
    assert manager.recv(1000) == b"READY=1\nSTATUS=degraded: no MAINPID=1"


def test_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"station-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        systemd.Notifier(f"@{name}").notify(WATCHDOG=1)
        assert manager.recv(1000) == b"WATCHDOG=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    notifier = systemd.from_environment()
    assert (notifier.address, notifier.watchdog_seconds) == (None, None)
    with capture_logs() as logs:
        notifier.notify(READY=1)
    assert not logs


def test_a_manager_that_is_gone_is_no_reason_to_fall(tmp_path: Path) -> None:
    with capture_logs() as logs:
        systemd.Notifier(str(tmp_path / "nobody")).notify(READY=1)
    assert [entry["event"] for entry in logs] == ["systemd is not listening"]


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", str(os.getpid()), 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
    ],
    ids=["anybody", "us", "another", "off", "nonsense"],
)
def test_watchdog(microseconds: str, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is None:
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd.from_environment().watchdog_seconds == seconds
