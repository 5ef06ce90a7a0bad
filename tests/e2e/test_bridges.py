"""Other people's software beside a real station: Node-RED with deploy/nodered/flow.json …"""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from station.messages import Alert
from tests.support.mill import Mill, run_mill
from tests.support.mosquitto import HOST, free_port
from tests.support.node import MODULES, need_module
from tests.support.programs import answers, running, wait_until
from tests.support.station_process import REPOSITORY

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    with run_mill(tmp_path_factory.mktemp("mill")) as mill:
        yield mill


def test_node_red(mill: Mill, tmp_path: Path) -> None:
    node = need_module("node-red")
    flow = json.loads((REPOSITORY / "deploy/nodered/flow.json").read_text())
    [broker] = [entry for entry in flow if entry["type"] == "mqtt-broker"]
    assert (broker["broker"], broker["port"]) == ("localhost", "1883")
    broker |= {"broker": HOST, "port": str(mill.broker.port)}
    (tmp_path / "flow.json").write_text(json.dumps(flow))
    port = free_port()
    settings = {"uiHost": HOST, "uiPort": port, "telemetry": {"enabled": False}, "diagnostics": {"enabled": False}}
    (tmp_path / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n")
    command = [node, MODULES / "node-red/red.js", "--userDir", tmp_path, "--settings", tmp_path / "settings.js"]

    def logged_in() -> bool:
        return answers(port) and "Connected to broker" in (tmp_path / "program.log").read_text()

    with running([*command, "flow.json"], tmp_path, logged_in):
        desk, light = mill.desk, "plant/mill/3/stack-light"
        mill.line.defective = True
        desk.wait_for(lambda _: desk.on(light)[-1:] == [b"red"])
        mill.line.defective = False
        desk.wait_for(lambda _: desk.on(light)[-1:] == [b"green"])

        alert = Alert.model_validate_json(desk.on("/alert")[0])
        picture = tmp_path / f"alert-pictures/mill-3-left-{alert.id}.jpg"
        wait_until(picture.is_file)
        wait_until(lambda: picture.read_bytes() in desk.on(f"/alert/{alert.id}/image"))

        press(port, "pause")
        desk.wait_for(lambda _: mill.state() == "degraded")
        press(port, "resume")
        desk.wait_for(lambda _: mill.state() == "online")
        desk.wait_for(lambda _: len(desk.on("/reply/node-red")) == 2)
        assert [json.loads(reply)["ok"] for reply in desk.on("/reply/node-red")] == [True, True]


def press(port: int, button: str) -> None:
    """An inject node's button in the editor."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/inject/{button}", data=b"", timeout=60) as answer:
        assert answer.status == 200
