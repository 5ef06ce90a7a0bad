"""The fenced blocks of the documentation, for the tests that run them.

A test takes the blocks that it runs by ``blocks("docs/page.md", "language")`` or ``commands("docs/page.md")``;
tests/test_docs_blocks.py looks for these very words in the tests, so that a block which nobody asks for is noticed.
"""

import re
from dataclasses import dataclass

from tests.support.station_process import REPOSITORY

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>[\w+-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)(?P=ticks)\s*$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>.*?)\s*-->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path in the repository.
        line: of the opening fence, from 1.
        language: the word after the fence; "" if there is none.
        text: what is inside, without the indentation of the fence.
        not_run: the reason of the ``<!-- not run: reason -->`` before it; None without one.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.language or 'no language'})"

    def commands(self) -> list[str]:
        """The shell commands in it: comments and blank lines left out, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = (re.split(r"(?:^|\s)#", line)[0].strip() for line in lines)
        return [line for line in bare if line]


def pages() -> list[str]:
    """Every page of the documentation, README first; paths in the repository."""
    return [
        "README.md",
        *(path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "docs").rglob("*.md"))),
    ]


def all_blocks(page: str) -> list[Block]:
    """Every block of a page, in its order."""
    text = (REPOSITORY / page).read_text()
    found = []
    for fence in _FENCE.finditer(text):
        marked = _NOT_RUN.search(text[: fence.start()])
        inside = re.sub(rf"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE)
        reason = marked["reason"] if marked else None
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, fence["language"], inside, reason))
    return found


def blocks(page: str, language: str) -> list[Block]:
    """The blocks of a language that are to be run: those that the page does not mark as not run."""
    return [block for block in all_blocks(page) if block.language == language and block.not_run is None]


def commands(page: str) -> list[str]:
    """The commands of all ``bash`` blocks that are to be run, in the page's order."""
    return [command for block in blocks(page, "bash") for command in block.commands()]
