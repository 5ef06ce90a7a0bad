"""Every command of the README, in its order, as a user would type it.

What is exchanged for the test: less training, this machine's broker and camera instead of the plant's, and installs are
resolved but not carried out.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import Mosquitto, Subscriber, need
from tests.support.pages import blocks, commands
from tests.support.station_process import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

README = (REPOSITORY / "README.md").read_text()
COMMANDS = commands("README.md")
IN_BACKGROUND = {  # until stopped, and what each says meanwhile
    "station run": "mill/3/left",
    "station watch": "mill/3/left",
    "station dashboard": "http://127.0.0.1:",
    "mosquitto_sub": "mill/3/left",
}
TRAINING = ["--steps", "40", "--width", "1", "--batch-size", "4"]  # instead of ten minutes' worth


def surface(seed: int, *, hole: bool = False) -> np.ndarray:
    """A surface like woven cloth, 128 x 128."""
    y, x = np.mgrid[:128, :128]
    image = 128 + 30 * np.sin(x / 2) * np.sin(y / 2) + np.random.default_rng(seed).normal(0, 4, (128, 128))
    if hole:
        image[40:90, 40:90] = 0
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as the README's reader has it: images, and the settings file from the README."""
    folders = {"train/good": 12, "calibration": 40, "test/good": 6, "test/hole": 6}
    for start, (folder, n) in enumerate(folders.items()):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for i in range(n):
            image = surface(1000 * start + i, hole="hole" in folder)
            assert cv2.imwrite(str(tmp_path / "images" / folder / f"{i:03}.png"), image)
    (settings,) = blocks("README.md", "toml")
    (tmp_path / "station.toml").write_text(settings.text)
    return tmp_path


class Reader:
    """Types commands."""

    def __init__(self, folder: Path, port: int, camera: str) -> None:
        self.folder = folder
        self.port = port
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STATION_MQTT__PORT": str(port),
            "STATION_CAMERA__URL": camera,
            "STATION_DASHBOARD__PORT": "0",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }

    def run(self, command: str) -> str:
        """Run a command to its end; what it printed."""
        words, folder = shlex.split(command), self.folder
        if words[0] == "make":  # these are what runs this test; here only that the targets exist
            words, folder = ["make", "--dry-run", *words[1:]], REPOSITORY
        elif words[:2] == ["pip", "install"]:
            words, folder = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", *words[2:]], REPOSITORY
        elif words[:2] == ["station-train", "fit"]:
            words += TRAINING
        done = subprocess.run(
            words,
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command that runs until it is stopped."""
        words = shlex.split(command)
        if words[0] == "mosquitto_sub":
            words = [need("mosquitto_sub"), "-p", str(self.port), *words[1:]]
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )


def test_the_readme_has_commands_for_every_step():
    told = " ".join(COMMANDS)
    for command in (
        "make run",
        "make test",
        "fit",
        "export",
        "evaluate",
        "inspect",
        "calibrate",
        "check",
        "run",
        "watch",
        "dashboard",
    ):
        assert command in told


def test_every_command_of_the_readme_works(workplace: Path):
    shown = 0

    def picture(_number: int) -> np.ndarray:
        nonlocal shown
        shown += 1
        return np.repeat(surface(5000 + shown, hole=shown % 20 < 5)[..., None], 3, axis=2)

    with (
        Mosquitto(workplace) as broker,
        Subscriber(broker.port) as heard,
        MjpegServer(fps=10, picture=picture) as camera,
    ):
        reader = Reader(workplace, broker.port, camera.url)
        running: dict[str, subprocess.Popen[str]] = {}
        try:
            for command in COMMANDS:
                if command.startswith(tuple(IN_BACKGROUND)):
                    running[command] = reader.start(command)
                else:
                    reader.run(command)
            heard.wait_for(lambda messages: len([m for m in messages if m.topic.endswith("/score")]) > 30, timeout=120)
            (_, station), *others = running.items()
            for command, process in others:
                words = next(words for start, words in IN_BACKGROUND.items() if command.startswith(start))
                assert process.stdout is not None
                assert any(words in line for line in process.stdout), f"{command} has ended without saying {words}"
            station.send_signal(signal.SIGTERM)
            output, _ = station.communicate(timeout=30)
            assert station.returncode == 0, output
            heard.wait_for(lambda messages: messages[-1].topic.endswith("/status"))
            for command, process in others:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=30)
                assert process.returncode in (0, 130, -signal.SIGINT), command
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    topics = {message.topic.removeprefix("station/v1/mill/3/left/").split("/")[0] for message in heard.heard}
    assert topics >= {"status", "info", "score", "alert"}
    assert b"stopped" in heard.on("/status")[-1]
    assert list((workplace / "pictures").rglob("*.jpg"))
    assert (workplace / "calibration.html").is_file()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target
