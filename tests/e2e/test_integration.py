"""docs/integration.md: its examples, typed as they stand, to a real station; and every command does what it says."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
import yaml

from station.control import _VERB
from station.messages import MESSAGES, VERBS, Feedback, Info, Reply, Score, Status
from tests.support.mill import Mill, run_mill
from tests.support.mosquitto import need
from tests.support.pages import Block, blocks
from tests.support.programs import running, wait_until
from tests.support.station_process import REPOSITORY

pytestmark = pytest.mark.e2e

PAGE = (REPOSITORY / "docs/integration.md").read_text()
COMMANDS = [command for block in blocks("docs/integration.md", "bash") for command in block.commands()]
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (REPOSITORY / "deploy/schemas").glob("*.json")}


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    with run_mill(tmp_path_factory.mktemp("plant")) as plant:
        yield plant


def told_results() -> dict[str, set[str]]:
    """Keys of ``result`` by verb, as the page's table tells them."""
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \|([^|]*)\|$", PAGE, re.MULTILINE)
    return {verb: set(re.findall(r"`(\w+)`", cell)) for verb, cell in rows if verb in VERBS}


def test_every_verb_is_told() -> None:
    assert set(told_results()) == set(VERBS)
    assert all(_VERB.fullmatch(verb) for verb in VERBS)


@pytest.mark.parametrize("block", blocks("docs/integration.md", "json"), ids=str)
def test_messages_are_as_the_page_shows_them(block: Block) -> None:
    message = json.loads(block.text)
    kind = message["schema"].rpartition("/")[2]
    [model] = [model for model in MESSAGES if model.topic == kind]
    model.model_validate_json(block.text)
    jsonschema.validate(message, SCHEMAS[kind])


def test_every_error_code_is_told(plant: Mill) -> None:
    sources = [(REPOSITORY / "station" / name).read_text() for name in ("control.py", "thresholds.py", "daemon.py")]
    codes = re.findall(r"(?:_RefusedError|CommandError)\(\s*f?\"([a-z-]+): ", "".join(sources))
    assert len(codes) > 8
    assert [code for code in codes if f"`{code}`" not in PAGE] == []


def test_every_command_of_the_page_is_run_by_a_test() -> None:
    bridges, node_red = ((REPOSITORY / f"tests/e2e/test_{name}.py").read_text() for name in ("bridges", "nodered"))
    for command in COMMANDS:
        program, script, *_ = shlex.split(command)
        if not program.startswith(("mosquitto_", "promtool")):  # which run below
            assert f'on_page("{program}", "{script}")' in bridges or f'"{command}"' in node_red


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("mosquitto_")])
def test_commands_of_the_page_work(plant: Mill, command: str) -> None:
    program, *options = shlex.split(command)
    topic = options[options.index("-t") + 1]
    verb = topic.partition("/cmd/")[2]
    heard = len(plant.desk.replies(verb)) if verb else 0
    words = [need(program), "-h", "127.0.0.1", "-p", str(plant.broker.port), *options]
    if program == "mosquitto_sub":
        words += ["-C", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    if program == "mosquitto_sub":
        assert len(done.stdout.splitlines()) == 3
        return
    given = json.loads(options[options.index("-m") + 1])
    if not verb:
        plant.desk.wait_for(lambda _: plant.desk.on(topic))
        assert Feedback.model_validate_json(plant.desk.on(topic)[-1]).alert == given["alert"]
        jsonschema.validate(given, SCHEMAS["feedback"])
        return
    jsonschema.validate(given, SCHEMAS["set-threshold" if verb == "set-threshold" else "command"])
    if program == "mosquitto_rr":
        reply = Reply.model_validate_json(done.stdout)
    else:
        plant.desk.wait_for(lambda _: len(plant.desk.replies(verb)) > heard)
        reply = plant.desk.replies(verb)[-1]
    assert (reply.ok, reply.error, reply.verb) == (True, None, verb)
    assert reply.id == given.get("id")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("promtool")])
def test_promtool_says_that_all_is_well(command: str) -> None:
    program, *options = shlex.split(command)
    done = subprocess.run([need(program), *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ten_lines_of_python_hear_an_alert(plant: Mill, tmp_path: Path) -> None:
    [block] = blocks("docs/integration.md", "python")
    assert len([line for line in block.text.splitlines() if line]) == 10, "as the page says"
    here = block.text.replace('"localhost", 1883', f'"127.0.0.1", {plant.broker.port}')
    assert here != block.text
    log = tmp_path / "program.log"
    subscribed = plant.broker.subscriptions("station/v1/+/+/+/alert")
    with running([sys.executable, "-c", here], tmp_path, lambda: True):
        wait_until(lambda: plant.broker.subscriptions("station/v1/+/+/+/alert") > subscribed)
        alert = plant.pass_defect()
        wait_until(lambda: f"close {alert.id} score {alert.peak_score}" in log.read_text())
    assert f"open {alert.id} score" in log.read_text()


def ask(plant: Mill, verb: str, payload: bytes = b"") -> Reply:
    reply = plant.desk.ask(verb, payload)
    assert reply.ok, reply.error
    assert set(reply.result) == told_results()[verb]
    return reply


def test_pause_and_resume(plant: Mill) -> None:
    desk, heard = plant.desk, len(plant.alerts())
    plant.line.defective = True
    desk.wait_for(lambda _: len(plant.alerts()) > heard)
    ask(plant, "pause", b'{"by": "ann"}')
    desk.wait_for(lambda _: plant.state() == "degraded")
    [reason] = Status.model_validate_json(desk.on("/status")[-1]).reasons
    assert reason.startswith("paused: by ann")
    desk.wait_for(lambda _: plant.alerts()[-1].event == "close")
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
def test_snapshot(plant: Mill, paused: bool) -> None:
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


def test_set_threshold(plant: Mill) -> None:
    was = plant.desk.next_score().threshold
    reply = ask(plant, "set-threshold", b'{"threshold": 60, "by": "ann"}')
    assert reply.result == {"threshold": 60, "was": was}
    assert plant.desk.next_score().threshold == 60
    plant.desk.wait_for(lambda _: Info.model_validate_json(plant.desk.on("/info")[-1]).threshold == 60)
    last = json.loads((plant.folder / "state/threshold.log").read_text().splitlines()[-1])
    assert (last["what"], last["by"], last["from"], last["to"]) == ("set", "ann", was, 60)


def test_reload(plant: Mill) -> None:
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


def test_all_that_this_station_has_said_is_as_described(plant: Mill) -> None:
    """Last in this module: every message of all the tests above, against the schemas and the AsyncAPI document."""
    desk = plant.desk
    plant.pass_defect()
    ask(plant, "snapshot")
    desk.send("snapshot")
    desk.wait_for(
        lambda _: desk.on("/frame") and desk.on("/reply/snapshot") and desk.on("/health") and desk.on("/info")
    )
    described = yaml.safe_load((REPOSITORY / "deploy/asyncapi.yaml").read_text())
    channels = {name: channel for name, channel in described["channels"].items() if name != "feedback"}
    operations = {operation["channel"]["$ref"]: operation for operation in described["operations"].values()}
    seen = set()
    for message in list(desk.heard):
        if "/cmd/" in message.topic or message.topic.endswith(("/feedback", "/reply/desk")):
            continue  # what others have sent, and a topic of this desk's own choice
        [name] = [name for name, channel in channels.items() if fits(channel["address"], message.topic)]
        seen.add(name)
        [kind] = channels[name]["messages"]
        assert message.properties.ContentType == described["components"]["messages"][kind]["contentType"]
        binding = operations[f"#/channels/{name}"]["bindings"]["mqtt"]
        assert message.qos == binding["qos"]
        assert getattr(message.properties, "MessageExpiryInterval", 0) <= binding.get("messageExpiryInterval", 0)
        if kind == "picture":
            assert message.payload.startswith(b"\xff\xd8\xff")
        elif kind == "frame":
            assert message.payload.startswith(b"\x89PNG")
        else:
            jsonschema.validate(json.loads(message.payload), SCHEMAS[kind])
    assert seen == channels.keys() - {"command", "setThreshold"}


def fits(address: str, topic: str) -> bool:
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(address)), topic) is not None
