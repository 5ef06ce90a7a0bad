"""The report of `make faults`: one line a fault - injected, expected, seen."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPORT = "FAULTS_REPORT"
"""Environment variable: the page between whose marks the lines go as a table, docs/reliability.md."""
BEGIN, END = "<!-- faults: made by `make faults` -->", "<!-- end -->"


@dataclass
class Fault:
    """One line of the report.

    Attributes:
        injected: what was done to the running station.
        expected: what was promised for it.
        seen: what happened; a test sets it before it asserts, so that the line of a failure tells too.
        held: whether the test passed.
    """

    injected: str = ""
    expected: str = ""
    seen: str = "nothing: the test broke off"
    held: bool = False
    test: str = ""


_outcomes = pytest.StashKey[bool]()
_faults = pytest.StashKey[list[Fault]]()


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """The line of this test; fill in ``injected`` and ``expected`` at once, ``seen`` before asserting."""
    line = Fault(test=request.node.name)
    yield line
    assert line.injected, "the test names no fault"
    assert line.expected, "the test names no expectation"
    line.held = request.node.stash.get(_outcomes, False)
    request.config.stash.setdefault(_faults, []).append(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.when == "call":
        item.stash[_outcomes] = report.passed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_faults, [])
    if lines:
        terminalreporter.section("faults")
    for line in lines:
        terminalreporter.write_line(
            f"{'held  ' if line.held else 'BROKEN'} {line.injected} | expected: {line.expected} | seen: {line.seen}"
        )
    if lines and (path := os.environ.get(REPORT)):
        _write_table(Path(path), lines)


def _write_table(page: Path, lines: list[Fault]) -> None:
    rows = [("injected", "expected", "seen", "held"), ("---", "---", "---", "---")]
    rows += [(line.injected, line.expected, line.seen, "yes" if line.held else "**no**") for line in lines]
    # Where pytest keeps its files is nobody's business.
    rows = [tuple(re.sub(r"/\S*pytest-\d+/[^/\s]+/", "…/", cell) for cell in row) for row in rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    text = page.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
