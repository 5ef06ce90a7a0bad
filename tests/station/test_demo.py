"""``station demo`` as a user starts it. The detector is a toy (tests/support): it proves the way, not the finding."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from station.settings import load_settings
from tests.support.bundles import make_bundle

COMMAND = [sys.executable, "-m", "station", "demo"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "toy"
    make_bundle(path, 64, grey=95, colour="gray")
    return path


def run_demo(*arguments, environment=None):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=120, env=environment
    )


def rows(output):
    """The summary table: kind -> planted, found, missed."""
    pattern = r"(hole|dent|stain|thread|scratch|all)[^\d/]+(\d+)\D+(\d+)\D+(\d+)"  # and no path
    return {kind: tuple(map(int, n)) for kind, *n in re.findall(pattern, output)}


def test_it_runs_to_its_end_and_tells_what_happened(toy, tmp_path):
    out = tmp_path / "out put"
    out.mkdir()
    (out / "alert-of-an-earlier-run.jpg").write_bytes(b"")
    (out / "mine.txt").write_text("keep")
    arguments = ["--bundle", toy, "--out", out, "--frames", "60", "--fps", "60", "--seed", "1"]
    # A station of the user's own must not reach into the demo.
    environment = {**os.environ, "STATION_MQTT__PORT": "1", "STATION_JUDGE__THRESHOLD": "1e-3"}
    done = run_demo(*arguments, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    table = rows(done.stdout)
    assert table["all"][0] == sum(n for kind, (n, _, _) in table.items() if kind != "all") >= 2
    assert table["all"][0] == table["all"][1] + table["all"][2]
    # The demo's broker may lose the last scores (QoS 0) of a station that leaves.
    assert 50 <= int(re.search(r"Frames: (\d+) in", done.stdout)[1]) <= 60
    assert re.search(r"False alarms: \d+ of \d+ alerts", done.stdout)
    assert "Traceback" not in done.stderr
    assert (out / "contact-sheet.jpg").stat().st_size > 10_000
    assert not (out / "alert-of-an-earlier-run.jpg").exists()
    assert (out / "mine.txt").read_text() == "keep"
    settings = load_settings(out / "station.toml")
    assert settings.camera.url == "demo:brick?seed=1&frames=60"
    assert settings.bundle == toy


def test_ctrl_c_ends_it_and_leaves_no_process_behind(toy, tmp_path):
    out = tmp_path / "out"
    demo = subprocess.Popen(
        [*COMMAND, "--bundle", toy, "--out", out, "--frames", "2000", "--fps", "10"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        log = out / "station.log"
        deadline = time.monotonic() + 100
        while not (log.exists() and '"online"' in log.read_text()):
            assert demo.poll() is None, demo.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        demo.send_signal(signal.SIGINT)
        output = demo.communicate(timeout=60)[0].decode()
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130
    assert "Traceback" not in output
    assert '"stopped"' in log.read_text()  # the daemon was asked to stop, and did so in its own way


def test_a_missing_bundle_is_named(tmp_path):
    arguments = ["--bundle", tmp_path / "nothing", "--out", tmp_path / "out"]
    done = run_demo(*arguments)
    assert done.returncode == 1
    assert "there is no bundle at" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_fails_inside_is_told_with_the_end_of_the_log(toy, tmp_path):
    bundle = tmp_path / "damaged"
    bundle.mkdir()
    for path in toy.iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    (bundle / "scorer.onnx").write_bytes(b"tampered with")
    arguments = ["--bundle", bundle, "--out", tmp_path / "out"]
    done = run_demo(*arguments)
    assert done.returncode == 1
    assert "station calibrate failed" in done.stderr
    assert "scorer.onnx" in done.stderr
    assert "Traceback" not in done.stderr
