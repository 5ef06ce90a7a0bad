"""Tables in pages that are made: each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``."""

import re
from collections.abc import Iterable
from pathlib import Path


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells] for cells in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)


def fill(page: str, tables: Iterable[tuple[str, str]], path: Path) -> str:
    """The page with these tables, (name, text), in their places; ``path`` is named where there is not one place."""
    for name, table in tables:
        mark = rf"(<!-- table: {name} -->\n)[^<]*(<!-- end -->)"
        page, n = re.subn(mark, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", page)  # type: ignore[misc]
        if n != 1:
            raise SystemExit(f"{path}: {n} places for the table {name!r}")
    return page
