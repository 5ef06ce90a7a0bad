"""deploy/asyncapi.yaml and deploy/schemas: made from the models, as their standards want them, and complete."""

import json
import runpy
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from station.messages import MESSAGES
from tests.support.node import MODULES, need_module
from tests.support.station_process import REPOSITORY

MAKER = runpy.run_path(str(REPOSITORY / "docs/make_asyncapi.py"))
DOCUMENT = REPOSITORY / "deploy/asyncapi.yaml"
SCHEMAS = sorted((REPOSITORY / "deploy/schemas").glob("*.json"))


def parse(document: Path) -> dict:
    """As AsyncAPI's own parser sees it."""
    command = [need_module("@asyncapi/parser"), Path(__file__).with_name("parse_asyncapi.cjs"), MODULES, document]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


def test_the_parser_has_nothing_to_say_against_it():
    parsed = parse(DOCUMENT)
    assert troubles(parsed) == []
    assert parsed["channels"] == {
        name: f"station/v1/{{site}}/{{line}}/{{station}}/{topic}" for name, (topic, *_) in MAKER["CHANNELS"].items()
    }
    assert sorted(set(parsed["operations"].values())) == ["receive", "send"]


def test_the_parser_is_no_yes_man(tmp_path):
    document = yaml.safe_load(DOCUMENT.read_text())
    document["operations"]["sendScore"]["channel"]["$ref"] = "#/channels/scores"
    document["channels"]["alertImage"]["parameters"].pop("id")
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(document))
    found = " ".join(troubles(parse(broken)))
    assert "#/channels/scores" in found or "sendScore" in found
    assert "id" in found


def test_every_topic_of_the_page_is_described():
    page = (REPOSITORY / "docs/integration.md").read_text()
    table = page.partition("| topic |")[2].partition("\n\n")[0]
    for topic, *_ in MAKER["CHANNELS"].values():
        shown = topic.replace("{", "<").replace("}", ">").replace("cmd/set-threshold", "cmd/<verb>")
        assert f"| `{shown}` |" in table
