"""deploy/systemd/station@.service: what systemd's own tools say of it, and what a station in it can really reach."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.openvino import library
from tests.support.bundles import GREY, make_bundle
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, free_port, need
from tests.support.systemd_root import PYTHON, REPOSITORY, SHARED, SystemdRoot

UNIT_FILE = REPOSITORY / "deploy/systemd/station@.service"
UNIT = "station@cam-1"
MOST_EXPOSURE = 2.0


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as an instance, whose program is there."""
    path = tmp_path / "station@cam-1.service"
    path.write_text(
        UNIT_FILE.read_text().replace("/opt/cbigan-station/bin/station", shutil.which("true") or "/bin/true")
    )
    return path


def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout + done.stderr == ""


def test_what_it_is_exposed_to_is_little_and_explained(unit: Path) -> None:
    command = [need("systemd-analyze"), "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd older than 250 cannot rate a file")
    assert done.returncode == 0, done.stderr
    level = re.search(r"Overall exposure level for \S+: ([\d.]+) OK", done.stdout)
    assert level is not None, done.stdout
    assert float(level[1]) <= MOST_EXPOSURE
    exposed = re.findall(r"^✗ (\S+)", done.stdout, re.MULTILINE)
    assert exposed
    explained = (REPOSITORY / "docs/security.md").read_text().replace("\\|", "|")  # as a table's cell needs it
    assert [name for name in exposed if f"`{name}`" not in explained] == []
    assert f"**{level[1]}**" in explained


@pytest.fixture
def root(tmp_path: Path) -> Iterator[SystemdRoot]:
    def picture(_number: int) -> np.ndarray:
        return np.full((96, 128, 3), GREY, np.uint8)

    with MjpegServer(fps=10, picture=picture) as camera, SystemdRoot(tmp_path) as root:
        root.add_user()
        make_bundle(root.shared / "bundle")
        root.put(
            "/etc/cbigan-station/cam-1.toml",
            f"""
            bundle = "{SHARED}/bundle"
            [camera]
            url = "{camera.url}"
            [judge]
            threshold = 40
            [mqtt]
            host = "{HOST}"
            port = {free_port()}
            username = "cam-1"
            """,
        )
        for name, secret in (("mqtt_password", "Cred-3-ential"), ("camera_url", camera.url)):
            root.put(f"/etc/cbigan-station/credentials/cam-1/{name}", f"{secret}\n", 0o600)
        # A device that is none of the station's, and that everybody may read but for the unit.
        root.run("mknod", "-m", "666", "/dev/other", "c", "10", "229")
        yield root


PROBE = """
import ctypes, json, mmap, os, socket

def tried(action):
    try:
        return str(action())
    except OSError as error:
        return os.strerror(error.errno)

def write(path):
    with open(path, "w") as file:
        return file.write("x")

libc = ctypes.CDLL(None, use_errno=True)
def namespace():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")

print(json.dumps({
    "user": str(os.getuid() != 0),
    "state": tried(lambda: write("/var/lib/cbigan-station/cam-1/probe")),
    "cache": tried(lambda: write("/var/cache/cbigan-station/cam-1/probe")),
    "tmp": tried(lambda: write("/tmp/probe")),
    "etc": tried(lambda: write("/etc/probe")),
    "opt": tried(lambda: write("/opt/cbigan-station/probe")),
    "own settings": tried(lambda: write("/etc/cbigan-station/cam-1.toml")),
    "home": tried(lambda: os.listdir("/root")),
    "credential files": tried(lambda: os.listdir("/etc/cbigan-station/credentials/cam-1")),
    "credentials": tried(lambda: sorted(os.listdir(os.environ["CREDENTIALS_DIRECTORY"]))),
    "other device": tried(lambda: os.close(os.open("/dev/other", os.O_RDONLY))),
    "null device": tried(lambda: write("/dev/null")),
    "raw socket": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "internet socket": tried(lambda: socket.socket(socket.AF_INET).close()),
    "writable code": tried(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()),
    "namespace": tried(namespace),
    "chown": tried(lambda: os.chown("/var/lib/cbigan-station/cam-1/probe", 0, 0)),
    "host name": tried(lambda: socket.sethostname("x")),
    "resolver": tried(lambda: socket.getaddrinfo("localhost", 1883)[0][4][1]),
}))
"""


@pytest.mark.e2e
def test_what_a_process_in_it_can_reach(root: SystemdRoot) -> None:
    (root.shared / "probe.py").write_text(PROBE)
    root.put_unit()
    # The same unit, but for what it starts.
    root.put(
        "/etc/systemd/system/station@probe.service.d/zz-probe.conf",
        f"[Unit]\nAssertPathExists=\n[Service]\nType=oneshot\nWatchdogSec=0\nRestart=no\nExecStart=\n"
        f"Environment=LD_LIBRARY_PATH=/srv/python/lib\nExecStart={PYTHON} {SHARED}/probe.py\n"
        "StateDirectory=cbigan-station/cam-1\nCacheDirectory=cbigan-station/cam-1\n"
        f"StandardOutput=append:{SHARED}/probe.log\nStandardError=append:{SHARED}/probe.log\n"
        "LoadCredential=mqtt_password:/etc/cbigan-station/credentials/cam-1/mqtt_password\n",
    )
    root.run("systemctl", "daemon-reload")
    root.run("systemctl", "start", "station@probe")
    found = json.loads((root.shared / "probe.log").read_text())
    read_only, denied, forbidden = "Read-only file system", "Permission denied", "Operation not permitted"
    assert found == {
        "user": "True",
        "state": "1",
        "cache": "1",
        "tmp": "1",
        "etc": read_only,
        "opt": read_only,
        "own settings": read_only,
        "home": denied,
        "credential files": denied,
        "credentials": "['camera_url', 'mqtt_password']",
        "other device": forbidden,
        "null device": "1",
        "raw socket": "Address family not supported by protocol",
        "internet socket": "None",
        "writable code": forbidden,
        "namespace": forbidden,
        "chown": forbidden,
        "host name": forbidden,
        "resolver": "1883",
    }
    assert not root.path("/tmp/probe").exists()  # its /tmp is its own


@pytest.mark.e2e
def test_a_station_works_in_it(root: SystemdRoot) -> None:
    """ONNX Runtime, OpenCV with FFmpeg, SQLite and paho under MemoryDenyWriteExecute and the system call filter."""
    root.put_unit()
    root.run("systemctl", "start", UNIT)  # READY=1 comes with the first frame inspected
    assert root.show(UNIT, "ActiveState") == "active"
    assert root.show(UNIT, "User") == "cbigan-station"
    pid = root.show(UNIT, "MainPID")
    status = root.run("cat", f"/proc/{pid}/status").stdout
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert "Cred-3-ential" not in root.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline").stdout
    log = (root.shared / "station.log").read_text()
    assert "Cred-3-ential" not in log
    assert re.search(r"backend\W+onnxruntime", log)  # also where OpenVINO is installed
    root.run("systemctl", "stop", UNIT)
    assert root.show(UNIT, "Result") == "success"


@pytest.mark.e2e
@pytest.mark.skipif(library.problem() is not None, reason="the extra 'openvino' is not installed")
def test_openvino_works_in_it_once_it_may_make_code(root: SystemdRoot) -> None:
    root.put_unit(options="MemoryDenyWriteExecute=no")
    root.run("systemctl", "start", UNIT)
    assert root.show(UNIT, "ActiveState") == "active"
    assert re.search(r"backend\W+openvino", (root.shared / "station.log").read_text())


@pytest.mark.e2e
def test_a_station_needs_no_secret(root: SystemdRoot) -> None:
    for name in ("mqtt_password", "camera_url"):
        root.path(f"/etc/cbigan-station/credentials/cam-1/{name}").unlink()
    root.put_unit()
    root.run("systemctl", "start", UNIT)
    assert root.show(UNIT, "ActiveState") == "active"
