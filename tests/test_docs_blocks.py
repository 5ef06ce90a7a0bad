"""Every code block of the documentation is run by a test, checked for what it is, or marked with the reason why not.

``bash``, ``python`` and the like are run by the test that takes them by ``blocks("docs/page.md", "bash")`` or
``commands("docs/page.md")``. ``json``, ``toml``, ``yaml`` and ``ini`` are checked here. Blocks of ``text`` or of no
language are for people. What nobody can run here has ``<!-- not run: reason -->`` on the line before it.
"""

import configparser
import json
import re
import sys
from pathlib import Path

import markdown
import pytest
import yaml

from station.messages import MESSAGES
from station.settings import ENV_DELIMITER, ENV_PREFIX, load_settings
from tests.support.pages import Block, all_blocks, pages
from tests.support.station_process import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pydantic-settings[toml]

BLOCKS = [block for page in pages() for block in all_blocks(page)]
CHECKED_HERE = ("json", "toml", "yaml", "ini")
FOR_PEOPLE = ("", "text")  # layouts, what a program prints
# A station needs these; a page that shows one section need not repeat them.
REQUIRED = {("", "bundle"): "bundle", ("camera", "url"): "v4l2:///dev/video0", ("judge", "threshold"): "1"}
COMMAND = re.compile(
    r"^(\$ |# )?(station|station-train|pip|python3?|sudo|apt-get|make|docker|mosquitto_\w+|curl) \S", re.MULTILINE
)


def checked(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and block.not_run is None]


def run_by_tests() -> set[tuple[str, str]]:
    """Page and language of every ``blocks(page, language)`` and ``commands(page)`` in the tests."""
    found = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        text = path.read_text()
        found |= set(re.findall(r'\bblocks\(\s*"([^"]+)",\s*"([^"]+)"', text))
        found |= {(page, "bash") for page in re.findall(r'\bcommands\(\s*"([^"]+)"', text)}
    return found


@pytest.mark.parametrize("page", pages())
def test_every_block_is_run_checked_or_marked(page: str):
    run = run_by_tests()
    left = [
        str(block)
        for block in all_blocks(page)
        if block.not_run is None
        and block.language not in {*CHECKED_HERE, *FOR_PEOPLE}
        and (page, block.language) not in run
    ]
    assert left == [], "run them in a test, or say why not: <!-- not run: reason -->"


@pytest.mark.parametrize("page", pages())
def test_every_block_is_fenced_and_every_mark_has_its_block(page: str):
    text = (REPOSITORY / page).read_text()
    html = markdown.markdown(text, extensions=["tables", "sane_lists", "pymdownx.superfences"])
    assert html.count("<pre") == len(all_blocks(page)), "an indented block, or a fence that is never closed"
    assert text.count("<!-- not run:") == sum(block.not_run is not None for block in all_blocks(page))


def test_reasons_are_given():
    assert [str(block) for block in BLOCKS if block.not_run is not None and len(block.not_run.split()) < 3] == []


def test_what_is_for_people_holds_no_commands():
    """A command in a ``text`` block would be one that nobody runs."""
    assert [str(b) for b in BLOCKS if b.language in FOR_PEOPLE and b.not_run is None and COMMAND.search(b.text)] == []


@pytest.mark.parametrize("block", checked("json"), ids=str)
def test_json_blocks_are_valid(block: Block):
    """A message is one that the station could send; other JSON is JSON."""
    value = json.loads(block.text)
    models = {model.model_fields["schema_"].default: model for model in MESSAGES}
    if isinstance(value, dict) and str(value.get("schema", "")).startswith("station/"):
        models[value["schema"]].model_validate_json(block.text)


@pytest.mark.parametrize("block", checked("toml"), ids=str)
def test_toml_blocks_are_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Settings, or a part of them: known keys, values in range."""
    given = tomllib.loads(block.text)
    path = tmp_path / "station.toml"
    path.write_text(block.text)
    for (section, key), value in REQUIRED.items():
        if key not in (given.get(section, {}) if section else given):
            monkeypatch.setenv(ENV_PREFIX + (f"{section}{ENV_DELIMITER}{key}" if section else key).upper(), value)
    load_settings(path)


def test_yaml_blocks_are_valid():
    for block in checked("yaml"):
        assert yaml.safe_load(block.text), str(block)


@pytest.mark.parametrize("block", checked("ini"), ids=str)
def test_ini_blocks_are_valid(block: Block):
    """A unit, or a drop-in for one, of keys that systemd may repeat."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(block.text)
    assert parser.sections()
