"""deploy/systemd/dashboard.service: what systemd's own tools say of it, and that the page works in it."""

import http.client
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mosquitto import HOST, Mosquitto, free_port, need
from tests.support.systemd_root import REPOSITORY, SystemdRoot

UNIT_FILE = REPOSITORY / "deploy/systemd/dashboard.service"
UNIT = "station-dashboard"
MOST_EXPOSURE = 1.5


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, whose program is there."""
    path = tmp_path / f"{UNIT}.service"
    path.write_text(
        UNIT_FILE.read_text().replace("/opt/cbigan-station/bin/station", shutil.which("true") or "/bin/true")
    )
    return path


def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_it_is_exposed_to_little(unit: Path) -> None:
    command = [need("systemd-analyze"), "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd older than 250 cannot rate a file")
    level = re.search(r"Overall exposure level for \S+: ([\d.]+) OK", done.stdout)
    assert level is not None, done.stdout
    assert float(level[1]) <= MOST_EXPOSURE, done.stdout


@pytest.fixture
def root(tmp_path: Path) -> Iterator[SystemdRoot]:
    with SystemdRoot(tmp_path) as root:
        root.add_user()
        yield root


@pytest.mark.e2e
def test_the_page_works_in_it(root: SystemdRoot, broker: Mosquitto) -> None:
    """Starlette, argon2 and SQLite under MemoryDenyWriteExecute and the system call filter; READY=1 and WATCHDOG=1."""
    port = free_port()
    root.put(
        "/etc/cbigan-station/dashboard.toml",
        f"[mqtt]\nhost = '{HOST}'\nport = {broker.port}\n[dashboard]\nport = {port}\n"
        "users_file = '/etc/cbigan-station/users'\noperators = ['ann']\n",
    )
    root.put_unit()  # the stations': it makes the program
    root.put(f"/etc/systemd/system/{UNIT}.service", UNIT_FILE.read_text())
    root.put(
        f"/etc/systemd/system/{UNIT}.service.d/zz-test.conf",
        "[Service]\nStandardError=append:/srv/test/dashboard.log\nWatchdogSec=2\n",
    )
    root.run("systemctl", "daemon-reload")
    root.run("systemctl", "start", UNIT)
    assert root.show(UNIT, "ActiveState") == "active"
    me = _get(port, "/api/me")
    assert me["login"] is True
    assert root.path("/var/lib/cbigan-station/dashboard/dashboard.db").exists()
    watched = root.show(UNIT, "WatchdogTimestampMonotonic")
    root.wait_for(lambda: root.show(UNIT, "WatchdogTimestampMonotonic") != watched, "a sign of life")
    root.run("systemctl", "stop", UNIT)
    assert root.show(UNIT, "Result") == "success"


def _get(port: int, path: str) -> dict[str, object]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", path)
    answer: dict[str, object] = json.loads(connection.getresponse().read())
    connection.close()
    return answer
