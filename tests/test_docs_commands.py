"""The commands of the smaller pages, as they stand there; what a test exchanges is said where it does."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from station.commands.demo import BUNDLE
from tests.support.bundles import make_bundle
from tests.support.mosquitto import need
from tests.support.pages import commands
from tests.support.station_process import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def run(words: list[str], folder: Path) -> str:
    """Run a command to its end; what it printed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CACHE_DIRECTORY": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which the pages' paths of this repository lead to it."""
    for name in ("engines", "deploy", "bundles"):
        (tmp_path / name).mkdir()
    (tmp_path / "engines/bundled").symlink_to(REPOSITORY / "engines/bundled")
    (tmp_path / "deploy/mosquitto").symlink_to(REPOSITORY / "deploy/mosquitto")
    (tmp_path / "bundles/leather").symlink_to(BUNDLE)
    return tmp_path


def test_bundle_page(checkout: Path):
    listed, verified = (run(shlex.split(command), checkout) for command in commands("docs/bundle.md"))
    assert "brick" in listed
    assert "ok scorer.onnx" in verified


def test_demo_page(checkout: Path):
    (demo,) = map(shlex.split, commands("docs/demo.md"))
    # An engine that needs no time, and 20 frames instead of 300; real engines are at work in other tests.
    make_bundle(checkout / "toy", 64, grey=95, colour="gray")
    assert "planted" in run([*demo, "--bundle", "toy", "--frames", "20", "--fps", "60"], checkout)
    assert (checkout / "demo-out/station.toml").is_file()


def test_engines_page(checkout: Path):
    pytest.importorskip("tensorrt_rtx")
    (checkout / "station.toml").write_text(
        'bundle = "bundles/leather"\n[camera]\nurl = "demo:brick"\n[judge]\nthreshold = 1.0\n'
    )
    for command in commands("docs/engines.md"):
        assert "best" in run(shlex.split(command), checkout)
    assert len(list((checkout / "cache").rglob("*.plan"))) == 2


def test_security_page(checkout: Path):
    need("openssl")
    for command in commands("docs/security.md"):
        run(shlex.split(command), checkout)
    for made in ("ca.crt", "ca.crl", "server/server.key", "stations/plant7/line-1/cam-2/client.crt"):
        assert (checkout / "plant-ca" / made).is_file()
