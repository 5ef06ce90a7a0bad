"""The engine that ships: it is what its README says, and it finds what is planted on the demo's line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engines.bundle import read_bundle
from station.commands.demo import BUNDLE
from tests.support.mosquitto import Mosquitto, Subscriber
from tests.support.station_process import REPOSITORY, StationProcess, station

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SETTINGS = """
bundle = "{bundle}"
calibration = "calibration.json"
[camera]
url = "demo:brick?seed=3&frames=60"
[mqtt]
host = "127.0.0.1"
port = {port}
"""


def test_the_bundled_engine_was_trained_on_the_demos_photograph_alone():
    manifest = read_bundle(BUNDLE).manifest
    command = (BUNDLE.parent / "README.md").read_text()
    steps = re.search(r"after ([\d,]+) steps", command)
    assert steps
    assert manifest.training.steps == int(steps[1].replace(",", ""))
    assert manifest.training.n_images == 340  # of 400; the others are held out
    assert manifest.preprocessing.scale == 2.0
    assert manifest.smoothing == 3.0
    assert manifest.standards is not None


def test_the_demo_finds_what_is_planted_without_a_false_alarm(tmp_path: Path):
    """300 frames: at least 95 % of the planted defects, no false alarm."""
    done = subprocess.run(
        [sys.executable, "-m", "station", "demo", "--out", str(tmp_path / "out"), "--fps", "60"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    table = re.search(r"all\s+│\s+(\d+)\s+│\s+(\d+)\s+│\s+(\d+)", done.stdout)
    assert table, done.stdout
    planted, found, missed = map(int, table.groups())
    assert planted == found + missed >= 10
    assert found / planted >= 0.95
    assert "False alarms: 0 of" in done.stdout
    frames = re.search(r"Frames: (\d+) in", done.stdout)
    # Scores are QoS 0, and the demo's broker drops some on a busy machine; alerts are not.
    assert frames
    assert int(frames[1]) >= 270
    assert (tmp_path / "out" / "contact-sheet.jpg").is_file()


def test_a_subscriber_hears_the_whole_story_from_the_bundled_engine(tmp_path: Path):
    """The real engine, daemon and broker: online, info, scores, open, image, close, stopped; thresholds calibrated."""
    training = tmp_path / "data"
    assert station("demo", "--write-training-images", training).returncode == 0
    with Mosquitto(tmp_path) as broker, Subscriber(broker.port) as heard:
        config = tmp_path / "station.toml"
        config.write_text(SETTINGS.format(bundle=BUNDLE, port=broker.port))
        good = training / "test" / "good"
        calibrated = station("calibrate", "--config", config, "--good", good, timeout=300)
        assert calibrated.returncode == 0, calibrated.stderr
        with StationProcess(config, tmp_path / "log") as process:
            assert process.wait(120) == 0, process.log
        heard.wait_for(lambda messages: b"stopped" in messages[-1].payload)
        kinds = [message.topic.rsplit("/", 1)[-1] for message in heard.heard]
        assert kinds.count("score") == 60
        events = [json.loads(payload)["event"] for payload in heard.on("/alert")]
        states = [json.loads(payload)["state"] for payload in heard.on("/status")]
    assert states[-2:] == ["online", "stopped"]
    assert events[0] == "open"
    assert events.count("open") == events.count("close") >= 1
    assert (
        kinds.index("status") < kinds.index("info") < kinds.index("score") < kinds.index("alert") < kinds.index("image")
    )
