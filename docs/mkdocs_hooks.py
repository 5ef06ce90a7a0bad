"""What mkdocs needs to know about this repository; named in mkdocs.yml.

Pages link to files outside docs/ (a broker's access list, measured figures). Those files come with the site, below
``files/``, so that the links work there as they do in the checkout; a folder comes with a list of its files. Decisions
join the navigation by themselves.
"""

import re
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# A relative link or picture: [words](target) or [words](target "title"), with or without an anchor.
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)\s#])")
_CODE = re.compile(r"`[^`\n]+`")
FILES = "files"
_LISTING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<h1>{title}</h1><ul>{entries}</ul></html>
"""


def _outside(page: str, target: str, root: Path) -> PurePosixPath | None:
    """Path in the repository of a link that leaves docs/; None for one that stays inside.

    Args:
        page: the page's path below docs/.
        target: what it links to.
        root: the repository.

    Raises:
        PluginError: it leaves docs/ and leads nowhere.
    """
    if target.startswith("/"):
        return None  # mkdocs itself complains
    path = ((root / "docs" / page).parent / target).resolve()
    if path.is_relative_to(root / "docs") or not path.is_relative_to(root):
        return None
    if not path.exists():
        raise PluginError(f"docs/{page} links to {target}, which does not exist")
    return PurePosixPath(path.relative_to(root).as_posix())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the decisions, in their order, as the last part of the navigation."""
    decisions = sorted(Path(config.docs_dir, "decisions").glob("*.md"))
    entries: list[Any] = config.nav or []
    entries.append({"Decisions": [f"decisions/{path.name}" for path in decisions]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in the files outside docs/ that pages link to."""
    root = Path(config.docs_dir).parent
    links = (
        (page.src_uri, link) for page in files.documentation_pages() for link in _LINK.findall(page.content_string)
    )
    linked = {path for page, link in links if (path := _outside(page, link, root)) is not None}
    for path in sorted(linked):
        if (root / path).is_dir():
            names = sorted(file.name for file in (root / path).iterdir() if file.is_file())
            entries = "".join(f'<li><a href="{quote(name)}">{escape(name)}</a></li>' for name in names)
            page = _LISTING.format(title=escape(str(path)), entries=entries)
            files.append(File.generated(config, f"{FILES}/{path}/index.html", content=page))
            linked |= {path / name for name in names}
    for path in sorted(linked):
        if (root / path).is_file():
            files.append(File.generated(config, f"{FILES}/{path}", abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs names them
    """Turn links that leave docs/ to the copies below ``files/``; read a table's code as GitHub does."""
    up = "../" * page.file.src_uri.count("/")

    def turned(link: re.Match[str]) -> str:
        root = Path(config.docs_dir).parent
        path = _outside(page.file.src_uri, link[0], root)
        if path is None:
            return link[0]
        return f"{up}{FILES}/{path}" + ("/index.html" if (root / path).is_dir() else "")

    lines = _LINK.sub(turned, markdown).splitlines()
    # GitHub needs the bar of a table's code escaped; here it would be shown with the backslash.
    cells = (
        _CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line for line in lines
    )
    return "\n".join(cells)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs names them
    """Make the empty corner of a table a cell: a heading that says nothing is read out as one."""
    return html.replace("<th></th>", "<td></td>")


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - mkdocs names them
    """Name the theme's search box, which has a dialog's role, for those who hear the page."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
