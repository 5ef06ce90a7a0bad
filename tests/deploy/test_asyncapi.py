"""deploy/asyncapi.yaml and deploy/schemas: made from the models, as their standards want them, and complete."""

import json
import runpy
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from station.messages import MESSAGES, Command, Feedback, Score, SetThreshold, utc_now
from tests.support.node import MODULES, need_module
from tests.support.station_process import REPOSITORY

MAKER = runpy.run_path(str(REPOSITORY / "docs/make_asyncapi.py"))
DOCUMENT = REPOSITORY / "deploy/asyncapi.yaml"
SCHEMAS = sorted((REPOSITORY / "deploy/schemas").glob("*.json"))


@pytest.fixture(scope="module")
def parsed(tmp_path_factory) -> dict[str, dict]:
    """The document, and one with two mistakes, as AsyncAPI's own parser sees them."""
    document = yaml.safe_load(DOCUMENT.read_text())
    document["operations"]["sendScore"]["channel"]["$ref"] = "#/channels/scores"
    document["channels"]["alertImage"]["parameters"].pop("id")
    broken = tmp_path_factory.mktemp("asyncapi") / "broken.yaml"
    broken.write_text(yaml.safe_dump(document))
    script = Path(__file__).with_name("parse_asyncapi.cjs")
    command = [need_module("@asyncapi/parser"), script, MODULES, DOCUMENT, broken]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(("ours", "broken"), map(json.loads, done.stdout.splitlines()), strict=True))


def troubles(parsed: dict) -> list[str]:
    """Errors and warnings; what is left are hints (severity 2 and 3)."""
    return [f"{d['code']} at {d['path']}: {d['message']}" for d in parsed["diagnostics"] if d["severity"] < 2]


def test_files_are_what_make_docs_writes():
    made = MAKER["files"]()
    assert {path: path.read_text() for path in made} == made, "run `make docs`"
    assert set(SCHEMAS) == {path for path in made if path.suffix == ".json"}, "a schema that nobody makes any more"


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_schemas_are_json_schemas(path):
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_every_message_has_a_schema():
    assert {model.topic for model in MESSAGES} <= {path.stem for path in SCHEMAS}


def test_the_parser_has_nothing_to_say_against_it(parsed):
    ours = parsed["ours"]
    assert troubles(ours) == []
    assert ours["channels"] == {
        name: f"station/v1/{{site}}/{{line}}/{{station}}/{topic}" for name, (topic, *_) in MAKER["CHANNELS"].items()
    }
    assert sorted(set(ours["operations"].values())) == ["receive", "send"]


def test_the_parser_is_no_yes_man(parsed):
    found = troubles(parsed["broken"])
    assert any("#/channels/scores" in trouble for trouble in found)
    assert any("alertImage" in trouble for trouble in found)


TAKEN = {"command": Command, "set-threshold": SetThreshold, "feedback": Feedback}
GIVEN = [
    ("command", {}),
    ("command", {"id": "18", "by": "ann", "expires_at": "2100-01-01T00:00:00Z"}),
    ("command", {"id": ""}),
    ("command", {"by": "a" * 101}),
    ("command", {"threshold": 3}),
    ("command", {"id": 18}),
    ("set-threshold", {"threshold": 45, "by": "ann"}),
    ("set-threshold", {"threshold": 45}),
    ("set-threshold", {"threshold": 0, "by": "ann"}),
    ("set-threshold", {"threshold": 1e10, "by": "ann"}),
    ("feedback", {"alert": "1", "verdict": "confirmed", "by": "ann"}),
    ("feedback", {"alert": "1", "verdict": "maybe", "by": "ann"}),
    ("feedback", {"alert": "1", "verdict": "confirmed", "by": "ann", "seq": -1}),
]


@pytest.mark.parametrize(("kind", "given"), GIVEN, ids=[f"{kind}-{json.dumps(given)[:60]}" for kind, given in GIVEN])
def test_schemas_refuse_what_the_station_refuses_and_nothing_else(kind, given):
    schema = json.loads((REPOSITORY / f"deploy/schemas/{kind}.json").read_text())
    try:
        TAKEN[kind].model_validate_json(json.dumps(given))
        taken = True
    except ValidationError:
        taken = False
    assert jsonschema.Draft202012Validator(schema).is_valid(given) == taken


def test_a_subscriber_made_today_takes_a_message_with_a_new_key():
    score = Score(frame=1, captured_at=utc_now(), score=1, threshold=2, anomalous=False, latency_ms={})
    message = json.loads(score.payload())
    schema = json.loads((REPOSITORY / "deploy/schemas/score.json").read_text())
    jsonschema.validate(message | {"colour": "blue"}, schema)
    del message["threshold"]
    with pytest.raises(jsonschema.ValidationError, match="threshold"):
        jsonschema.validate(message, schema)


def test_every_topic_of_the_page_is_described():
    page = (REPOSITORY / "docs/integration.md").read_text()
    table = page.partition("| topic |")[2].partition("\n\n")[0]
    for topic, *_ in MAKER["CHANNELS"].values():
        shown = topic.replace("{", "<").replace("}", ">").replace("cmd/set-threshold", "cmd/<verb>")
        assert f"| `{shown}` |" in table
