"""What ``station calibrate`` keeps for the camera rules."""

from pathlib import Path

import cv2
import numpy as np
from typer.testing import CliRunner, Result

from station.calibration import load_calibration
from station.cli import app
from tests.support.bundles import make_bundle
from tests.support.camera_faults import dimmed
from tests.support.mjpeg_server import MjpegServer
from tests.support.webs import web


def calibrate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def late_light(number: int) -> np.ndarray:
    """The lamp goes on after half a second."""
    image = web(number % 100)
    return dimmed(image, 0, number) if number < 50 else image


def test_frames_with_a_camera_fault_are_not_taken_for_good_ones(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    config = tmp_path / "station.toml"
    with MjpegServer(fps=100, picture=late_light) as camera:
        config.write_text(f'bundle = "bundle"\ncalibration = "c.json"\n[camera]\nurl = "{camera.url}"\n')
        result = calibrate("--config", config, "--frames", "40")
    assert result.exit_code == 0, result.output
    healthy = load_calibration(tmp_path / "c.json", bundle).healthy
    assert healthy is not None
    assert healthy.n == 40
    assert healthy.bright.low > 100, "a black frame is among the good ones"
    assert "frames a second (as measured while calibrating)" in result.output


def test_the_rules_that_cannot_work_here_are_told(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    good = tmp_path / "good"
    good.mkdir()
    for number in range(25):
        cv2.imwrite(str(good / f"{number:02}.png"), web(number, (96, 128)))
    out = tmp_path / "c.json"
    result = calibrate("--bundle", bundle.path, "--good", good, "--out", out)
    assert result.exit_code == 0, result.output
    healthy = load_calibration(out, bundle).healthy
    assert healthy is not None
    assert (healthy.frame_height, healthy.frame_width) == (96, 128)
    assert healthy.blind.keys() >= {"camera-colours", "camera-moved"}
    for rule, why in healthy.blind.items():
        assert f"Not watched for: {rule}, because {why}." in result.output
