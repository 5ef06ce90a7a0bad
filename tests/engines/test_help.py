"""Every error leads to a page that exists and speaks of it."""

import re
from pathlib import Path

import pytest

from engines.errors import SelfTestError
from engines.help import CAMERA_FAULTS, ERRORS, REASONS, SECTIONS, explained, page_of, page_of_reason
from station.cli import USER_ERRORS as STATION_ERRORS
from station.commands.check import _BrokerError
from station.settings import Settings, SettingsError, load_settings
from tests.support.station_process import REPOSITORY, station
from train.cli import USER_ERRORS as TRAIN_ERRORS

PAGE = (REPOSITORY / ERRORS).read_text()
SOURCES = "\n".join(
    path.read_text() for part in ("station", "engines", "train") for path in (REPOSITORY / part).rglob("*.py")
)
CODE = re.sub(r'"\s*\n\s*f?"', "", SOURCES)  # a message may go over several lines
EXPLAINED = re.findall(r"^- (`[^`]+`(?:, `[^`]+`)*):", PAGE, re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def is_there(link: str) -> bool:
    page, _, anchor = link.partition("#")
    return (REPOSITORY / page).is_file() and (not anchor or anchor in anchors(page))


@pytest.mark.parametrize(
    "kind", [*STATION_ERRORS, *TRAIN_ERRORS, SettingsError, _BrokerError], ids=lambda kind: kind.__name__
)
def test_every_error_of_a_user_has_a_section_that_exists(kind: type[Exception]) -> None:
    page = page_of(kind("words"))
    assert page is not None
    assert is_there(page)


@pytest.mark.parametrize("section", sorted(set(SECTIONS.values())))
def test_every_section_exists(section: str) -> None:
    assert section in anchors(ERRORS)


def test_every_name_is_that_of_an_error_in_the_code() -> None:
    assert [name for name in SECTIONS if not re.search(rf"^class _?{name}\(", SOURCES, re.MULTILINE)] == []


def test_every_section_of_the_page_is_one_that_errors_lead_to() -> None:
    assert anchors(ERRORS) - set(SECTIONS.values()) == {"when-something-is-wrong"}


@pytest.mark.parametrize("phrase", [phrase for line in EXPLAINED for phrase in re.findall("`([^`]+)`", line)])
def test_what_the_page_quotes_is_what_the_programs_say(phrase: str) -> None:
    assert phrase in CODE


def test_a_setting_leads_to_its_section(tmp_path: Path) -> None:
    for section, key in (("camera", "nothing"), ("mqtt", "nothing"), ("alerts", "nothing")):
        (tmp_path / "station.toml").write_text(f"bundle = 'b'\n[{section}]\n{key} = 1\n")
        with pytest.raises(SettingsError) as caught:
            load_settings(tmp_path / "station.toml")
        assert page_of(caught.value) == f"docs/settings.md#{section}"


def test_every_section_of_the_settings_has_its_anchor() -> None:
    sections = [name for name, field in Settings.model_fields.items() if hasattr(field.annotation, "model_fields")]
    assert "mqtt" in sections
    for name in [*sections, "mqtt.tls", "camera.roi"]:
        page = page_of(SettingsError(f"f.toml: a setting cannot be used\n  {name}.key = 1: no"))
        assert page == f"docs/settings.md#{name.replace('.', '')}"
        assert is_there(page)


def test_reasons_of_a_status_lead_to_the_table_that_lists_their_code() -> None:
    assert page_of_reason("camera-blurred: sharpness 0.3") == CAMERA_FAULTS
    assert page_of_reason("paused: by anna") == REASONS
    assert is_there(CAMERA_FAULTS)
    assert is_there(REASONS)


def test_errors_of_one_kind_lead_where_their_base_does() -> None:
    class OtherError(SelfTestError):
        pass

    assert explained(OtherError("x")) == "x\nsee docs/errors.md#self-test"
    assert explained(ValueError("x")) == "x"


def test_the_program_prints_it(tmp_path: Path) -> None:
    done = station("inspect", "--bundle", tmp_path / "none", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "see docs/errors.md#bundle"
