"""Debian's Chromium, driven by Playwright: fixtures that tests/conftest.py offers to every test.

``page`` is a desktop's window, ``phone`` a phone's, both in English, in light colours until a test asks for others
(``page.emulate_media(color_scheme="dark")``). Whatever the browser's console reports as an error, and every exception
that no script caught, fails the test at its end; a test that provokes some clears ``console_errors``.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
_LARGEST = 300_000  # bytes of a screenshot
CHROMIUM = [
    "--no-sandbox",  # the tests may run as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Not for the whole session: while Playwright runs, its event loop counts as running in this thread, and a test of
# another module could not start one of its own.
@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (apt install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def console_errors() -> list[str]:
    """What went wrong in the pages of this test so far."""
    return []


def _listen(page: "Page", errors: list[str]) -> None:
    def heard(message: "ConsoleMessage") -> None:
        if message.type == "error":
            errors.append(f"{message.text} ({message.location['url']})")

    page.on("console", heard)
    page.on("pageerror", lambda error: errors.append(str(error)))


def _pages(context: "BrowserContext", errors: list[str]) -> "Iterator[Page]":
    context.set_default_timeout(60_000)  # a slow machine's; every wait ends as soon as it may
    context.on("page", lambda page: _listen(page, errors))
    yield context.new_page()
    context.close()
    assert not errors, "the browser's console:\n" + "\n".join(errors)


@pytest.fixture
def page(browser: "Browser", console_errors: list[str]) -> "Iterator[Page]":
    """A desktop's window, 1280 x 800."""
    context = browser.new_context(viewport=DESKTOP, locale="en-GB", timezone_id="UTC")  # type: ignore[arg-type]
    yield from _pages(context, console_errors)


@pytest.fixture
def phone(browser: "Browser", console_errors: list[str]) -> "Iterator[Page]":
    """A phone's window, 390 x 844, with touch."""
    context = browser.new_context(
        viewport=PHONE,  # type: ignore[arg-type]
        is_mobile=True,
        has_touch=True,
        locale="en-GB",
        timezone_id="UTC",
    )
    yield from _pages(context, console_errors)


Screenshot = Callable[..., Path]  # (page, name, full_page=False)


@pytest.fixture
def screenshot(tmp_path: Path) -> Screenshot:
    """``screenshot(page, name)`` → the picture's path: docs/images/<name>.png if SCREENSHOTS=1, else a scratch file."""

    def take(page: "Page", name: str, *, full_page: bool = False) -> Path:
        picture = page.screenshot(full_page=full_page, animations="disabled")
        keep = os.environ.get("SCREENSHOTS") == "1"
        if keep and len(picture) > _LARGEST:
            picture = _fewer_colours(picture)
            assert len(picture) <= _LARGEST, f"{name}.png takes {len(picture)} bytes, more than {_LARGEST}"
        path = (IMAGES if keep else tmp_path) / f"{name}.png"
        path.write_bytes(picture)
        return path

    return take


def _fewer_colours(png: bytes) -> bytes:
    """The same picture in 256 colours, or in 64: photographs make large PNGs."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        for colours in (256, 128, 64):
            out = io.BytesIO()
            picture.convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                out, "PNG", optimize=True
            )
            if out.tell() <= _LARGEST:
                break
    return out.getvalue()


def violations(page: "Page", *rules: str) -> str:
    """What axe finds wrong with the page's accessibility, in words; "" if nothing. Without ``rules`` it tries all."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = axe.Axe().run(page, options=options)
    return str(found.generate_report()) if found.violations_count else ""
