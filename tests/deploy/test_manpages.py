"""The manual pages are those of the commands' help, and man takes them without a complaint."""

import os
import runpy
import shutil
import subprocess

import pytest

from tests.support.station_process import REPOSITORY

MAKER = runpy.run_path(str(REPOSITORY / "docs" / "make_manpages.py"))


@pytest.mark.parametrize("program", list(MAKER["PROGRAMS"]))
def test_they_are_what_make_docs_writes(program: str) -> None:
    assert (REPOSITORY / "deploy" / "man" / f"{program}.1").read_text() == MAKER["page"](program), "run `make docs`"


@pytest.mark.parametrize("program", list(MAKER["PROGRAMS"]))
def test_man_shows_them(program: str) -> None:
    man = shutil.which("man")
    if man is None or shutil.which("groff") is None:
        pytest.skip("man and groff are not installed (apt install man-db groff)")
    environment = os.environ | {"MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "MAN_KEEP_FORMATTING": ""}
    page = REPOSITORY / "deploy" / "man" / f"{program}.1"
    done = subprocess.run(
        [man, "--warnings", "-l", page], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("NAME", "SYNOPSIS", "COMMANDS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"):
        assert heading in done.stdout
    assert "[bold]" not in done.stdout
    assert "`" not in done.stdout
