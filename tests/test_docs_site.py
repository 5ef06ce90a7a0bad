"""The documentation as a site: it builds without a warning, leans on no other host, and can be read by everybody."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.support.browser import violations
from tests.support.station_process import REPOSITORY

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder


class Fetched(HTMLParser):
    """What a browser fetches to show a page, and where the page's links lead."""

    ATTRIBUTES: ClassVar[dict[str, str]] = {
        "script": "src",
        "img": "src",
        "link": "href",
        "iframe": "src",
        "source": "src",
    }

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in self.ATTRIBUTES and given.get(self.ATTRIBUTES[tag]):
            self.fetched.append(str(given[self.ATTRIBUTES[tag]]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))


def test_every_page_is_in_the_navigation(site: Path):
    pages = {path.relative_to(REPOSITORY / "docs").with_suffix(".html") for path in (REPOSITORY / "docs").rglob("*.md")}
    linked = {Path(link) for link in Fetched((site / "index.html").read_text()).links}
    assert len(pages) > 20
    assert pages - {Path("index.html")} - linked == set()


def test_no_page_needs_another_host(site: Path):
    for path in site.rglob("*.html"):
        page = Fetched(path.read_text())
        assert [address for address in page.fetched if re.match(r"(https?:)?//", address)] == [], path


def test_links_to_other_files_of_the_repository_lead_to_them(site: Path):
    """Such as a broker's access list: mkdocs checks the links, this that they are the files."""
    links = {link.partition("#")[0] for path in site.glob("*.html") for link in Fetched(path.read_text()).links}
    files = [urllib.parse.unquote(link.removeprefix("files/")) for link in links if link.startswith("files/")]
    assert "deploy/mosquitto/acl" in files
    listed = {file.removesuffix("/index.html") for file in files if not (REPOSITORY / file).exists()}
    for folder in listed:
        listing = Fetched((site / "files" / folder / "index.html").read_text()).links
        assert set(listing) == {file.name for file in (REPOSITORY / folder).iterdir() if file.is_file()}
        files += [f"{folder}/{name}" for name in listing]
    for file in (file for file in files if file.removesuffix("/index.html") not in listed):
        assert (site / "files" / file).read_bytes() == (REPOSITORY / file).read_bytes()


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """Address of the site on a web server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def watched(page: "Page", served: str) -> list[str]:
    """Requests of a page to anything but the site's own server, as they come."""
    elsewhere: list[str] = []

    def asked(request: "Request") -> None:
        if not request.url.startswith((served, "data:", "blob:")):
            elsewhere.append(request.url)

    page.on("request", asked)
    return elsewhere


def search(page: "Page", words: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(words)
    page.locator(".md-search-result__item").first.wait_for()


@pytest.mark.parametrize(
    ("name", "colours"), [("index", "light"), ("tutorial", "dark"), ("choosing", "light"), ("operator", "dark")]
)
def test_a_reader_sees_it_without_barriers(page: "Page", served: str, name: str, colours: str):
    elsewhere = watched(page, served)
    page.emulate_media(color_scheme=colours, reduced_motion="reduce")
    page.goto(f"{served}/{name}.html")
    page.locator("h1").wait_for()
    assert violations(page) == ""
    assert elsewhere == []


def test_a_phone_shows_it_whole(phone: "Page", served: str):
    """Wide tables and pictures move or shrink; the page itself stays as wide as the phone."""
    for name in ("index", "tutorial", "choosing", "operator"):
        phone.goto(f"{served}/{name}.html")
        assert phone.evaluate("document.documentElement.scrollWidth") <= phone.viewport_size["width"], name


def test_search_finds(page: "Page", served: str):
    elsewhere = watched(page, served)
    page.goto(f"{served}/index.html")
    search(page, "hysteresis")
    page.locator(".md-search-result__item a").first.click()
    page.wait_for_url("**/*hysteresis*")
    assert elsewhere == []
