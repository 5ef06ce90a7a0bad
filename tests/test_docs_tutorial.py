"""docs/tutorial.md: every command, in its order, as a reader types it; an alert is seen in a real browser.

What is exchanged: less training and no locator (the README's test trains one), fewer pictures, this test's broker and
ports, and after the evaluation the engine that was trained for longer on the same pictures (it comes with the station)
takes the place of one that was hardly trained.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import Self

from station.commands.demo import BUNDLE
from station.messages import Alert
from tests.support.browser import Screenshot
from tests.support.mosquitto import Mosquitto, Subscriber, free_port
from tests.support.pages import blocks, commands

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SERVE = "station dashboard --config station.toml"
PASSWORD = "a wall of bricks"


class Reader:
    """Types commands in a folder; what runs until it is stopped is stopped at the end of the ``with`` block."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.folder = folder
        self.port = free_port()
        self.left = commands("docs/tutorial.md")
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STATION_MQTT__PORT": str(broker.port),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()

    def next(self, beginning: str, *more: str, typed: str = "", **exchanged: str) -> str:
        """Run the next command, which must begin so, to its end.

        Args:
            beginning: words of the command.
            more: options that the test adds.
            typed: on its standard input.
            exchanged: option (without dashes) → other value, for the test.
        """
        command = self.left.pop(0)
        assert command.startswith(beginning), command
        words = shlex.split(command)
        for option, value in exchanged.items():
            words[words.index(f"--{option}") + 1] = value
        words += more
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def start(self, command: str, *more: str) -> None:
        """Start a command that runs until it is stopped."""
        self.running[command] = subprocess.Popen(
            [*shlex.split(command), *more],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self, command: str) -> None:
        """Ctrl-C."""
        process = self.running.pop(command)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
        assert process.returncode in (0, 130), log


def thin_out(folder: Path, good: int = 25, other: int = 2) -> None:
    """Keep the first pictures of each kind."""
    for path in folder.rglob("*.png"):
        if int(path.stem.removesuffix("_mask")) >= (good if path.parent.name == "good" else other):
            path.unlink()


def wait_for_port(port: int) -> None:
    """Until somebody listens there."""
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nobody listens on port {port}")


def judge(reader: Reader, page: "Page", permalink: str) -> None:
    """Give ann a password, log in as her and confirm the alert."""
    reader.next("station dashboard --config station.toml --set-password ann", typed=PASSWORD + "\n")
    assert PASSWORD not in (reader.folder / "users").read_text()
    reader.start(SERVE, "--port", str(reader.port))
    wait_for_port(reader.port)
    host, _, path = permalink.partition("/alerts/")
    page.goto(f"{host}/login?next=/alerts/{path}")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Confirmed").click()


def test_the_tutorial_leads_to_an_alert(tmp_path: Path, page: "Page", screenshot: Screenshot):
    with Mosquitto(tmp_path) as broker, Subscriber(broker.port) as heard, Reader(tmp_path, broker) as reader:
        reader.next("station demo --write-training-images")
        thin_out(tmp_path / "brick")
        reader.next("station-train fit", "--batch-size", "4", "--no-locator", steps="12")
        reader.next("station-train export", "--precision", "fp32")
        assert (tmp_path / "bundles/brick/MODEL_CARD.md").is_file()
        table = reader.next("station-train evaluate")
        assert "scratch" in table
        assert (tmp_path / "bundles/brick-evaluation/evaluation.html").is_file()

        shutil.rmtree(tmp_path / "bundles/brick")
        shutil.copytree(BUNDLE, tmp_path / "bundles/brick")
        (settings,) = blocks("docs/tutorial.md", "toml")
        (tmp_path / "station.toml").write_text(settings.text)
        reader.next("station calibrate --config")
        assert (tmp_path / "calibration.html").is_file()
        assert "✓ broker" in reader.next("station check")

        run, serve = reader.left.pop(0), reader.left.pop(0)
        assert (run, serve) == ("station run --config station.toml", SERVE)
        reader.start(run)
        reader.start(serve, "--port", str(reader.port))
        heard.wait_for(lambda messages: any(m.topic.endswith("/frame") for m in messages), timeout=240)
        alert = next(
            alert
            for message in heard.heard
            if message.topic.endswith("/alert")
            for alert in [Alert.model_validate_json(message.payload)]
            if alert.event == "close"
        )
        address = f"http://127.0.0.1:{reader.port}"
        permalink = f"{address}/alerts/tutorial/wall/bricks/{alert.id}"
        wait_for_port(reader.port)
        page.goto(address)
        page.get_by_text("bricks").first.wait_for()
        page.goto(permalink)
        page.locator(".patches tbody tr").first.wait_for()
        page.wait_for_function("[...document.images].some(i => i.complete && i.naturalWidth > 0)")
        screenshot(page, "tutorial-alert")

        reader.stop(run)  # what comes after needs the processor more
        page.goto("about:blank")  # an open page would say on its console that the server went away
        reader.stop(serve)
        judge(reader, page, permalink)
        heard.wait_for(lambda messages: any(m.topic.endswith("/feedback") for m in messages))
        feedback = json.loads(heard.on("/feedback")[-1])
        assert (feedback["alert"], feedback["verdict"], feedback["by"]) == (alert.id, "confirmed", "ann")
        page.goto("about:blank")
        reader.next("station dashboard --config station.toml --export")
        assert len(list((tmp_path / "feedback/defect").glob("*.png"))) == 1
        reader.next("station calibrate --config station.toml --good brick/test/good --defect")
        assert reader.left == []
