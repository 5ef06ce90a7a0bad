"""What mkdocs needs to know about this repository; named in mkdocs.yml.

Pages link to files outside docs/ (a broker's access list, measured figures). Those files come with the site, below
``files/``, so that the links work there as they do in the checkout. Decisions join the navigation by themselves.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# A relative link or picture: [words](target) or [words](target "title"), with or without an anchor.
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)\s#])")
_CODE = re.compile(r"`[^`\n]+`")
FILES = "files"


def _outside(page: str, target: str, root: Path) -> PurePosixPath | None:
    """Path in the repository of a link that leaves docs/; None for one that stays inside.

    Args:
        page: the page's path below docs/.
        target: what it links to.
        root: the repository.

    Raises:
        PluginError: it leaves docs/ and leads to no file.
    """
    if target.startswith("/"):
        return None  # mkdocs itself complains
    path = ((root / "docs" / page).parent / target).resolve()
    if path.is_relative_to(root / "docs") or not path.is_relative_to(root):
        return None
    if not path.is_file():
        raise PluginError(f"docs/{page} links to {target}, which is no file")
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
    for page in files.documentation_pages():
        for target in _LINK.findall(page.content_string):
            path = _outside(page.src_uri, target, root)
            if path is not None and files.get_file_from_path(f"{FILES}/{path}") is None:
                # As bytes: mkdocs would take a README.md among them for a page.
                files.append(File.generated(config, f"{FILES}/{path}", abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs names them
    """Turn links that leave docs/ to the copies below ``files/``; read a table's code as GitHub does."""
    up = "../" * page.file.src_uri.count("/")

    def turned(link: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, link[0], Path(config.docs_dir).parent)
        return link[0] if path is None else f"{up}{FILES}/{path}"

    lines = _LINK.sub(turned, markdown).splitlines()
    # GitHub needs the bar of a table's code escaped; here it would be shown with the backslash.
    cells = (
        _CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line for line in lines
    )
    return "\n".join(cells)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - mkdocs names them
    """Name the theme's search box, which has a dialog's role, for those who hear the page."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
