"""deploy/nodered/flow.json in a real Node-RED, beside a real station.

In a module of its own: while Playwright runs, no test of the same module can start an event loop.
"""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import Screenshot
from tests.support.mill import Mill, run_mill
from tests.support.mosquitto import HOST, free_port
from tests.support.node import MODULES, need_module
from tests.support.pages import commands
from tests.support.programs import answers, running, wait_until
from tests.support.station_process import REPOSITORY

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.e2e

FLOW = REPOSITORY / "deploy/nodered/flow.json"
COMMAND = "node-red deploy/nodered/flow.json"


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    with run_mill(tmp_path_factory.mktemp("mill")) as mill:
        yield mill


@pytest.fixture(scope="module")
def node_red(mill: Mill, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Its port and its folder; started as the page says, but for the broker's address."""
    assert COMMAND in commands("docs/integration.md")
    node, folder, port = need_module("node-red"), tmp_path_factory.mktemp("node-red"), free_port()
    flow = json.loads(FLOW.read_text())
    [broker] = [entry for entry in flow if entry["type"] == "mqtt-broker"]
    assert (broker["broker"], broker["port"]) == ("localhost", "1883")
    broker |= {"broker": HOST, "port": str(mill.broker.port)}
    (folder / "flow.json").write_text(json.dumps(flow))
    settings = {
        "uiHost": HOST,
        "uiPort": port,
        "telemetry": {"enabled": False},
        "diagnostics": {"enabled": False},
        "editorTheme": {"tours": False},
        "externalModules": {"palette": {"allowInstall": False}},  # else the editor asks the internet for a catalogue
    }
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n")
    program = [node, MODULES / "node-red/red.js", "--userDir", folder, "--settings", folder / "settings.js"]

    def logged_in() -> bool:
        return answers(port) and "Connected to broker" in (folder / "program.log").read_text()

    with running([*program, "flow.json"], folder, logged_in):
        yield port, folder


def test_alerts_switch_the_light_and_pictures_become_files(mill: Mill, node_red: tuple[int, Path]) -> None:
    desk, light = mill.desk, "plant/mill/3/stack-light"
    alert = mill.pass_defect()
    desk.wait_for(lambda _: desk.on(light)[-2:] == [b"red", b"green"])
    picture = node_red[1] / f"alert-pictures/mill-3-left-{alert.id}.jpg"
    wait_until(picture.is_file)
    wait_until(lambda: picture.read_bytes() == desk.on(f"/alert/{alert.id}/image")[-1])


def test_an_alert_that_comes_twice_counts_once(mill: Mill, node_red: tuple[int, Path]) -> None:
    desk, light = mill.desk, "plant/mill/3/stack-light"
    alert = mill.pass_defect()
    opened = next(payload for payload in desk.on("/alert") if json.loads(payload)["id"] == alert.id)
    desk.wait_for(lambda _: desk.on(light)[-1:] == [b"green"])
    before = len(desk.on(light))
    desk._client.publish("station/v1/mill/3/left/alert", opened, qos=1)  # late, and again
    mill.pass_defect()
    desk.wait_for(lambda _: len(desk.on(light)) > before and desk.on(light)[-1:] == [b"green"])


def test_buttons_command_the_station(mill: Mill, node_red: tuple[int, Path]) -> None:
    press(node_red[0], "pause")
    mill.desk.wait_for(lambda _: mill.state() == "degraded")
    press(node_red[0], "resume")
    mill.desk.wait_for(lambda _: mill.state() == "online")
    mill.desk.wait_for(lambda _: len(mill.desk.on("/reply/node-red")) == 2)
    assert [json.loads(reply)["ok"] for reply in mill.desk.on("/reply/node-red")] == [True, True]


def press(port: int, button: str) -> None:
    """An inject node's button in the editor."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/inject/{button}", data=b"", timeout=60) as answer:
        assert answer.status == 200


def test_the_editor_shows_the_flow(
    mill: Mill, node_red: tuple[int, Path], page: "Page", screenshot: Screenshot
) -> None:
    page.goto(f"http://{HOST}:{node_red[0]}/")
    page.get_by_text("Buttons", exact=False).first.wait_for()
    screenshot(page, "node-red")
