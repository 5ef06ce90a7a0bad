"""deploy/install.sh on a machine of its own: real systemd, users, file system and pip; the wheels are made here."""

import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from station.settings import load_settings
from tests.support.bundles import GREY, make_bundle
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.systemd_root import PYTHON, REPOSITORY, SHARED, SystemdRoot

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INSTALL = Path("/srv/repository/deploy/install.sh")
UNIT = "station@cam-1"
ETC, STATE = Path("/etc/cbigan-station"), Path("/var/lib/cbigan-station")
BROKEN = "\nif sys.argv[1:2] == ['run']:\n    sys.exit('the test made this version fall')\n"


def write_wheel(folder: Path, version: str, *, requires: tuple[str, ...] = (), broken: bool = False) -> None:
    """The station as a wheel, by hand: nothing has to be downloaded to build it with."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    base = f"cbigan_station-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: cbigan-station\nVersion: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in (*project["dependencies"], *requires)]
    with zipfile.ZipFile(folder / f"{base}-py3-none-any.whl", "w") as wheel:
        for path in sorted(path for package in ("station", "engines") for path in (REPOSITORY / package).rglob("*")):
            if path.suffix != ".py":
                if path.is_file() and path.suffix != ".pyc":
                    wheel.write(path, str(path.relative_to(REPOSITORY)))
                continue
            text = path.read_text()
            if path == REPOSITORY / "station/__init__.py":
                text = re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', text)
            if path == REPOSITORY / "station/__main__.py" and broken:
                text = f"import sys{BROKEN}{text}"
            if path == REPOSITORY / "station/cli.py" and broken:
                text = text.replace("def main(", f"import sys{BROKEN}\n\ndef main(")
            wheel.writestr(str(path.relative_to(REPOSITORY)), text)
        wheel.writestr(f"{base}.dist-info/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(f"{base}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{base}.dist-info/entry_points.txt", "[console_scripts]\nstation = station.cli:main\n")
        wheel.writestr(f"{base}.dist-info/RECORD", "")


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    with MjpegServer(fps=10, picture=lambda _: np.full((96, 128, 3), GREY, np.uint8)) as camera:
        yield camera


class Device:
    """A line device."""

    def __init__(self, root: SystemdRoot) -> None:
        self.root = root
        # What the wheels need is this environment's, without its own station.
        packages = root.shared / "packages"
        packages.mkdir()
        for path in root.path("/srv/packages").iterdir():
            if "cbigan" not in path.name.lower():
                (packages / path.name).symlink_to(Path("/srv/packages", path.name))
        self._environment = {
            "PYTHONPATH": f"{SHARED}/packages",
            "LD_LIBRARY_PATH": "/srv/python/lib",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": "/dev/null",
            "STATION_INSTALL_START_SECONDS": "60",
        }
        root.put(
            "/etc/systemd/system/station@.service.d/test.conf",
            f"[Service]\nEnvironment=PYTHONPATH={SHARED}/packages LD_LIBRARY_PATH=/srv/python/lib OMP_NUM_THREADS=1\n"
            f"StandardOutput=append:{SHARED}/station.log\nStandardError=append:{SHARED}/station.log\nRestartSec=1\n",
        )

    def install(self, *arguments: str | Path) -> tuple[int, str]:
        done = self.root.run(INSTALL, *arguments, check=False, **self._environment)
        return done.returncode, done.stdout + done.stderr

    def wheel(self, version: str) -> tuple[str | Path, ...]:
        return "--python", PYTHON, "--source", SHARED / f"cbigan_station-{version}-py3-none-any.whl"

    @property
    def version(self) -> str:
        done = self.root.run("/opt/cbigan-station/bin/station", "--version", **self._environment)
        return done.stdout.split()[-1]

    def mode(self, path: str | Path) -> str:
        return self.root.run("stat", "-c", "%U:%G %a", path).stdout.strip()

    def exists(self, path: str | Path) -> bool:
        return os.path.lexists(self.root.path(path))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with SystemdRoot(tmp_path) as root:
        yield Device(root)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)  # five installations
def test_from_the_first_installation_to_the_last_trace(  # noqa: PLR0915 - one life, step by step
    tmp_path: Path, device: Device, camera: MjpegServer
) -> None:
    root = device.root
    for version in ("0.1", "0.2", "0.3"):
        write_wheel(root.shared, version, broken=version == "0.3")
    write_wheel(root.shared, "0.4", requires=("a-package-that-is-nowhere",))
    make_bundle(root.shared / "bundle")

    code, said = device.install(*device.wheel("0.1"))
    assert code == 0, said
    assert device.version == "0.1"
    assert device.mode(ETC) == "root:cbigan-station 750"
    assert device.mode(ETC / "credentials") == "root:root 700"
    assert "nologin" in root.run("getent", "passwd", "cbigan-station").stdout

    code, said = device.install(*device.wheel("0.1"))  # again
    assert code == 0, said
    assert device.version == "0.1"

    code, said = device.install("add", "../cam")
    assert code == 1
    assert "letters, digits" in said
    code, said = device.install("add", "cam-1")
    assert code == 0, said
    assert device.mode(ETC / "cam-1.toml") == "root:cbigan-station 640"
    assert "kept" in device.install("add", "cam-1")[1]

    with Mosquitto(tmp_path) as broker:
        settings = f"""
            bundle = "{SHARED}/bundle"
            state = "{STATE}/cam-1"
            [camera]
            url = "{camera.url}"
            [judge]
            threshold = 40
            [mqtt]
            host = "{HOST}"
            port = {broker.port}
            """
        root.path(ETC / "cam-1.toml").write_text(settings)
        for name, secret in (("mqtt_password", "unused"), ("camera_url", camera.url)):
            root.put(ETC / "credentials/cam-1" / name, secret, 0o600)
        root.run("systemctl", "enable", "--now", UNIT)
        assert root.show(UNIT, "ActiveState") == "active"
        root.put(STATE / "cam-1/mine", "what must not be lost")
        pid = root.show(UNIT, "MainPID")

        code, said = device.install(*device.wheel("0.2"))
        assert code == 0, said
        assert f"{UNIT}.service is up" in said
        assert device.version == "0.2"
        assert root.show(UNIT, "MainPID") != pid

        code, said = device.install(*device.wheel("0.3"))  # falls at the start
        assert code == 1
        assert "is back in place" in said
        assert device.version == "0.2"
        root.wait_for(lambda: root.show(UNIT, "ActiveState") == "active", "the old version")
        pid = root.show(UNIT, "MainPID")

        code, said = device.install(*device.wheel("0.4"))  # cannot be installed at all
        assert code == 1
        assert "nothing was changed" in said
        assert (device.version, root.show(UNIT, "MainPID")) == ("0.2", pid)
        versions = [path.name for path in root.path("/opt/cbigan-station.versions").iterdir() if not path.is_symlink()]
        assert len(versions) == 2, versions

        code, said = device.install("rollback")
        assert code == 0, said
        assert device.version == "0.1"
        assert root.show(UNIT, "ActiveState") == "active"

        code, said = device.install("remove")
        assert code == 0, said
        assert root.run("pgrep", "-u", "cbigan-station", check=False).stdout == ""
        for gone in ("/opt/cbigan-station", "/opt/cbigan-station.versions", "/var/cache/cbigan-station"):
            assert not device.exists(gone), gone
        assert not device.exists("/etc/systemd/system/multi-user.target.wants/station@cam-1.service")
        assert root.show(UNIT, "LoadState") == "not-found"
        assert root.path(ETC / "cam-1.toml").read_text() == settings
        assert root.path(STATE / "cam-1/mine").read_text() == "what must not be lost"
        assert device.install("remove")[0] == 0  # again

        assert device.install("remove", "--purge")[0] == 0
        assert not device.exists(ETC)
        assert not device.exists(STATE)
        assert root.run("getent", "passwd", "cbigan-station", check=False).stdout == ""


@pytest.mark.e2e
def test_what_it_did_not_make_is_left_alone(device: Device) -> None:
    device.root.put("/opt/cbigan-station/mine", "")
    code, said = device.install(*device.wheel("0.1"))
    assert code == 1
    assert "was not made by this script" in said
    assert device.exists("/opt/cbigan-station/mine")


def test_the_example_is_a_valid_settings_file(tmp_path: Path) -> None:
    text = (REPOSITORY / "deploy/station.example.toml").read_text()
    assert "@NAME@" in text
    (tmp_path / "cam-1.toml").write_text(text.replace("@NAME@", "cam-1"))
    settings = load_settings(tmp_path / "cam-1.toml")
    assert (settings.station.name, settings.state_folder) == ("cam-1", STATE / "cam-1")
