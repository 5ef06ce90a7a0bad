"""docs/integration.md: its examples, typed as they stand, to a real station; and every command does what it says."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from station.control import _VERB
from station.messages import MESSAGES, VERBS, Alert, Info, Reply, Score, Status
from tests.e2e.test_station_run import Line, write_config
from tests.support.desk import Desk
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import Mosquitto, need
from tests.support.station_process import REPOSITORY, StationProcess

pytestmark = pytest.mark.e2e

PAGE = (REPOSITORY / "docs/integration.md").read_text()
PREFIX = "station/v1/mill/3/left"


@dataclass
class Plant:
    folder: Path
    line: Line
    broker: Mosquitto
    desk: Desk

    def state(self) -> str:
        return Status.model_validate_json(self.desk.on("/status")[-1]).state


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder, line = tmp_path_factory.mktemp("plant"), Line()
    with (
        MjpegServer(fps=25, picture=line.picture) as camera,
        Mosquitto(folder) as broker,
        Desk(broker.port, PREFIX) as desk,
    ):
        config = write_config(folder, camera.url, broker.port)
        text = config.read_text().replace('"plant"', '"mill"').replace('"line-1"', '"3"').replace('"cam-1"', '"left"')
        config.write_text(f'state = "state"\n{text}')
        with StationProcess(config, folder / "log"):
            desk.next_score()
            yield Plant(folder, line, broker, desk)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def told_results() -> dict[str, set[str]]:
    """Keys of ``result`` by verb, as the page's table tells them."""
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \|([^|]*)\|$", PAGE, re.MULTILINE)
    return {verb: set(re.findall(r"`(\w+)`", cell)) for verb, cell in rows if verb in VERBS}


def test_every_verb_is_told() -> None:
    assert set(told_results()) == set(VERBS)
    assert all(_VERB.fullmatch(verb) for verb in VERBS)


@pytest.mark.parametrize("block", blocks("json"))
def test_messages_are_as_the_page_shows_them(block: str) -> None:
    schema = json.loads(block)["schema"]
    [model] = [model for model in MESSAGES if model.model_fields["schema_"].default == schema]
    model.model_validate_json(block)


def test_every_error_code_is_told(plant: Plant) -> None:
    sources = [(REPOSITORY / "station" / name).read_text() for name in ("control.py", "thresholds.py", "daemon.py")]
    codes = re.findall(r"(?:_RefusedError|CommandError)\(\s*f?\"([a-z-]+): ", "".join(sources))
    assert len(codes) > 8
    assert [code for code in codes if f"`{code}`" not in PAGE] == []


@pytest.mark.parametrize("command", [line for block in blocks("bash") for line in block.splitlines()])
def test_commands_of_the_page_work(plant: Plant, command: str) -> None:
    program, *options = shlex.split(command)
    verb = re.search(r"cmd/([a-z-]+)", command)
    heard = len(plant.desk.replies(verb.group(1))) if verb else 0
    words = [need(program), "-h", "127.0.0.1", "-p", str(plant.broker.port), *options]
    if program == "mosquitto_sub":
        words += ["-C", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    if program == "mosquitto_sub":
        assert len(done.stdout.splitlines()) == 3
        return
    assert verb is not None
    if program == "mosquitto_rr":
        reply = Reply.model_validate_json(done.stdout)
    else:
        plant.desk.wait_for(lambda _: len(plant.desk.replies(verb.group(1))) > heard)
        reply = plant.desk.replies(verb.group(1))[-1]
    assert (reply.ok, reply.error, reply.verb) == (True, None, verb.group(1))
    given = json.loads(options[options.index("-m") + 1])
    assert reply.id == given.get("id")


def ask(plant: Plant, verb: str, payload: bytes = b"") -> Reply:
    reply = plant.desk.ask(verb, payload)
    assert reply.ok, reply.error
    assert set(reply.result) == told_results()[verb]
    return reply


def test_pause_and_resume(plant: Plant) -> None:
    desk = plant.desk
    plant.line.defective = True
    desk.wait_for(lambda _: desk.on("/alert"))
    ask(plant, "pause", b'{"by": "ann"}')
    desk.wait_for(lambda _: plant.state() == "degraded")
    [reason] = Status.model_validate_json(desk.on("/status")[-1]).reasons
    assert reason.startswith("paused: by ann")
    desk.wait_for(lambda _: Alert.model_validate_json(desk.on("/alert")[-1]).event == "close")
    first = ask(plant, "snapshot").result
    last = first
    while frame_of(last) < frame_of(first) + 10:  # the camera goes on
        last = ask(plant, "snapshot").result
    assert first["score"] is last["score"] is None
    plant.line.defective = False
    ask(plant, "resume")
    desk.wait_for(lambda _: plant.state() == "online")
    assert desk.next_score().frame > frame_of(last)
    inspected = {Score.model_validate_json(payload).frame for payload in desk.on("/score")}
    assert not inspected & set(range(frame_of(first), frame_of(last) + 1))


def frame_of(result: dict[str, str | float | None]) -> int:
    frame = result["frame"]
    assert isinstance(frame, float)
    return int(frame)


@pytest.mark.parametrize("paused", [False, True])
def test_snapshot(plant: Plant, paused: bool) -> None:
    desk = plant.desk
    if paused:
        ask(plant, "pause")
    reply = ask(plant, "snapshot")
    topic = reply.result["image_topic"]
    assert isinstance(topic, str)
    desk.wait_for(lambda _: desk.on(topic))
    picture = cv2.imdecode(np.frombuffer(desk.on(topic)[0], np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    if paused:
        ask(plant, "resume")


def test_set_threshold(plant: Plant) -> None:
    was = plant.desk.next_score().threshold
    reply = ask(plant, "set-threshold", b'{"threshold": 60, "by": "ann"}')
    assert reply.result == {"threshold": 60, "was": was}
    assert plant.desk.next_score().threshold == 60
    plant.desk.wait_for(lambda _: Info.model_validate_json(plant.desk.on("/info")[-1]).threshold == 60)
    last = json.loads((plant.folder / "state/threshold.log").read_text().splitlines()[-1])
    assert (last["what"], last["by"], last["from"], last["to"]) == ("set", "ann", was, 60)


def test_reload(plant: Plant) -> None:
    desk = plant.desk
    config = plant.folder / "station.toml"
    good = config.read_text()
    config.write_text(good + "\nnonsense = 1\n")
    refused = desk.ask("reload")
    assert not refused.ok
    assert (refused.error or "").startswith("reload-refused: ")
    config.write_text(good.replace("threshold = 40", "threshold = 50"))
    ask(plant, "reload")
    desk.wait_for(lambda _: Info.model_validate_json(desk.on("/info")[-1]).threshold == 50)
    desk.wait_for(lambda _: plant.state() == "online")
    assert desk.next_score().threshold == 50
