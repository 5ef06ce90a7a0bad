"""One look for the pages that we write: the report of a calibration and that of an evaluation.

A page is one file that stands alone: no script, nothing fetched from elsewhere (its own policy forbids both), light
and dark, on a phone and on paper. Functions return HTML; what is called ``html`` goes in as it is, ``text`` is escaped.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from engines.plots import DARK, LIGHT


class Html(str):
    """Markup, where text would be escaped."""

    __slots__ = ()


def document(title: str, kicker: str, headline: str, lead: str, head: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page.

    Args:
        title: of the window, text.
        kicker: what the page is, in few words above the headline, text.
        headline: the result, text.
        lead: what it means, a sentence, text.
        head: what else belongs into the head of the page, HTML.
        sections: (name, HTML) each, in order, as ``section`` makes them; the name becomes its entry in the
            contents and "" has none.
    """
    links = "".join(f"<li><a href='#{anchor(name)}'>{escape(name)}</a></li>" for name, _ in sections if name)
    body = "".join(html for _, html in sections)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        "<link rel='icon' href='data:,'>"  # else a browser asks the server for one
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>"
        f"<header><p class='kicker'>{escape(kicker)}</p><h1>{escape(headline)}</h1><p class='lead'>{escape(lead)}</p>"
        f"{head}</header>"
        f"<nav aria-label='Contents'><ul>{links}</ul></nav>{body}</main></body></html>\n"
    )


def anchor(name: str) -> str:
    """The id of the section called ``name``."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def section(name: str, html: str, heading: str = "", *, warning: bool = False) -> tuple[str, str]:
    """A section for ``document``; ``name`` is its entry in the contents, and its heading if there is no other."""
    kind, mark = (" class='warn'", "<span aria-hidden='true'>⚠ </span>") if warning else ("", "")
    return name, f"<section id='{anchor(name)}'{kind}><h2>{mark}{escape(heading or name)}</h2>{html}</section>\n"


def paragraphs(*texts: str) -> str:
    """A paragraph each."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def bullets(texts: Iterable[str]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def steps(html: Iterable[str]) -> str:
    """A numbered list; its entries are HTML."""
    return f"<ol>{''.join(f'<li>{entry}</li>' for entry in html)}</ol>"


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """Figures at a glance: (label, value, note) each, text."""
    found = "".join(
        f"<div class='card'><dt>{escape(label)}</dt><dd><strong>{escape(value)}</strong><em>{escape(note)}</em></dd>"
        "</div>"
        for label, value, note in entries
    )
    return f"<dl class='cards'>{found}</dl>"


def figure(html: str, caption: str) -> str:
    """A chart or a picture with what it says, text."""
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(data: bytes, alt: str, size: tuple[int, int], kind: str = "jpeg") -> str:
    """An image inside the page.

    Args:
        data: its file.
        alt: what it shows, for who does not see it.
        size: (height, width) in pixels, so that nothing jumps while the page loads.
        kind: "jpeg" or "png".
    """
    height, width = size
    return (
        f"<img alt='{escape(alt, quote=True)}' width='{width}' height='{height}' "
        f"src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"
    )


def gallery(figures: Iterable[str], kind: str = "") -> str:
    """Figures in rows.

    Args:
        figures: as ``figure`` makes them.
        kind: "" or "small".
    """
    return f"<div class='gallery {kind}'>{''.join(figures)}</div>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table whose first column names the row; cells are text, or ``Html``.

    On a narrow screen it scrolls by itself, which it must be able to by keyboard, too.
    """
    top = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope='row'>{_cell(row[0])}</th>{''.join(f'<td>{_cell(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = escape(caption or " and ".join(head[:2]) or "table", quote=True)
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{label}'><table>{named}"
        f"{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{body}</tbody></table></div>"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of (name, value), text."""
    return table([], ([name, value] for name, value in rows)).replace("<table>", "<table class='facts'>", 1)


def link(name: str, text: str) -> Html:
    """A link to the section called ``name``."""
    return Html(f"<a href='#{anchor(name)}'>{escape(text)}</a>")


def _cell(cell: str) -> str:
    return cell if isinstance(cell, Html) else escape(cell)


def _colours(palette: dict[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in palette.items())


_CSS = f":root{{{_colours(LIGHT)}}}@media screen and (prefers-color-scheme:dark){{:root{{{_colours(DARK)}}}}}\n" + Path(
    __file__
).with_name("pages.css").read_text(encoding="utf-8")
