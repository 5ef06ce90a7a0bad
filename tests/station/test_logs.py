import json
import subprocess
import sys

import pytest

# In a process of its own: set_up() changes the logging of the whole process for good.
PROGRAM = """
import logging, structlog
from station import logs
from station.settings import LogSettings
logs.set_up(LogSettings(format="{format}", level="info"))
log = structlog.get_logger("ours")
log.debug("not shown")
log.info("shown", frames=3)
logging.getLogger("theirs").warning("of a %s", "library")
def fail():
    password = "hun" + "ter2"
    raise ValueError("went wrong")
try:
    fail()
except ValueError:
    log.exception("caught")
"""


def run(log_format: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(format=log_format)], capture_output=True, text=True, check=True
    )
    assert not done.stdout
    return done.stderr


def test_json_is_one_object_a_line_also_from_libraries() -> None:
    entries = [json.loads(line) for line in run("json").splitlines()]
    assert [(entry["event"], entry["level"]) for entry in entries] == [
        ("shown", "info"),
        ("of a library", "warning"),
        ("caught", "error"),
    ]
    assert entries[0]["frames"] == 3
    assert entries[0]["timestamp"].endswith("Z")
    assert "went wrong" in entries[2]["exception"]


@pytest.mark.parametrize("log_format", ["json", "console", "auto"])
def test_a_traceback_shows_no_local_variable(log_format: str) -> None:
    text = run(log_format)
    assert "went wrong" in text
    assert "hunter2" not in text
