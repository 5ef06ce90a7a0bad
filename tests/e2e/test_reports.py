"""The reports of ``station calibrate`` and ``station-train evaluate``, made by the page's commands, in a real browser.

Bricks of a CC0 photograph, with planted defects, scored by the bundled engine.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from engines.defects import KINDS
from station.commands.demo import BUNDLE
from station.demo.sample_line import STEP, SampleLine
from station.demo.training_images import good_frames
from tests.support.browser import violations
from tests.support.pages import commands

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# As many as it takes; for the documentation's pictures more.
N_GOOD, N_TEST_GOOD, N_DEFECTS = (200, 30, 25) if os.environ.get("SCREENSHOTS") == "1" else (24, 6, 10)
SMALL = {"width": 1200, "height": 680}
SETTINGS = """\
bundle = "bundles/leather"
calibration = "calibration.json"
[camera]
url = "v4l2:///dev/video0"
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the reports, after the commands of docs/calibration.md, and what these said."""
    folder = tmp_path_factory.mktemp("reports")
    _write_images(folder / "images")
    (folder / "station.toml").write_text(SETTINGS)
    shutil.copytree(BUNDLE, folder / "bundles/leather")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CACHE_DIRECTORY": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    said = [
        subprocess.run(shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, check=False)
        for command in commands("docs/calibration.md")
    ]
    assert [done.returncode for done in said] == [0, 0, 0], "\n".join(done.stderr for done in said)
    return {
        "calibration": (folder / "calibration.html").as_uri(),
        "planted": (folder / "planted.html").as_uri(),
        "evaluation": (folder / "bundles/leather-evaluation/evaluation.html").as_uri(),
        "said": said[0].stdout,
    }


def _write_images(folder: Path) -> None:
    """Good frames to calibrate on, and labelled ones with masks, in MVTec AD layout."""
    test, masks = folder / "test", folder / "ground_truth"
    for part in (folder / "calibration", test / "good", *(p / kind for p in (test, masks) for kind in KINDS)):
        part.mkdir(parents=True)
    for i, frame in enumerate(good_frames(N_GOOD + N_TEST_GOOD)):
        place = folder / "calibration" if i < N_GOOD else test / "good"
        cv2.imwrite(str(place / f"{i:02}.png"), frame)
    line = SampleLine(2_000_001, (N_DEFECTS + 2) * 480 // STEP)
    for n, planted in enumerate(line.planted[:N_DEFECTS]):
        frames = planted.frames(line.n_frames)
        middle = frames[len(frames) // 2]
        cv2.imwrite(str(test / planted.kind / f"{n:02}.png"), line.frame(middle)[..., 0])
        cv2.imwrite(str(masks / planted.kind / f"{n:02}_mask.png"), line.mask(middle).astype("uint8") * 255)


def test_calibration_report_on_a_desktop(reports, page, screenshot):
    page.set_viewport_size({"width": 1280, "height": 1380})
    page.goto(reports["calibration"])
    assert page.title() == "Calibration of brick"
    assert "in a shift of 8 hours" in page.locator("header").inner_text()
    screenshot(page, "calibration-report")
    page.set_viewport_size(SMALL)  # pictures of pictures take much room
    page.emulate_media(reduced_motion="reduce")  # a link leads there at once
    page.get_by_role("link", name="Highest patches").click()
    assert page.locator("#highest-patches img").count() == 24
    screenshot(page, "calibration-patches")
    page.get_by_role("link", name="By place", exact=True).click()
    fields = page.locator("#by-place svg").first.locator("rect > title")
    assert fields.count() == 64
    assert "the frame's highest patch was here in" in fields.first.text_content()
    screenshot(page, "calibration-places")
    assert page.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")


def test_calibration_report_says_what_the_command_said(reports, page):
    page.goto(reports["calibration"])
    first = reports["said"].split("\n")[0]
    assert first.startswith("A frame that scores above ")
    assert page.locator(".lead").inner_text() == first
    assert "1/week" in page.locator("#false-alarms table").inner_text()


def test_report_with_planted_defects_shows_those_that_score_lowest(reports, page):
    page.goto(reports["planted"])
    assert "planted defects found" in page.locator("header").inner_text()
    lowest = page.locator("#lowest-defects")
    assert "planted defects that score lowest" in lowest.inner_text()
    assert lowest.locator("img").count() == 6
    assert all(any(kind in words for kind in KINDS) for words in lowest.locator("figcaption").all_inner_texts())


@pytest.mark.parametrize("name", ["calibration", "planted", "evaluation"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_reports_are_accessible_on_a_desktop(reports, page, name, colours):
    page.emulate_media(color_scheme=colours)
    page.goto(reports[name])
    assert violations(page) == ""


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_reports_fit_a_phone(reports, phone, screenshot, name):
    phone.emulate_media(color_scheme="dark")
    phone.goto(reports[name])
    assert phone.evaluate("document.documentElement.scrollWidth") == phone.viewport_size["width"]
    assert violations(phone) == ""
    screenshot(phone, f"{name}-report-phone")


def test_on_paper_both_reports_are_dark_on_white(reports, page):
    for name in ("calibration", "evaluation"):
        page.goto(reports[name])
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.locator("nav").is_visible()
        assert page.locator("section").first.evaluate("it => getComputedStyle(it).color") == "rgb(24, 33, 45)"


def test_evaluation_report_on_a_desktop(reports, page, screenshot):
    page.set_viewport_size({"width": 1280, "height": 1500})
    page.goto(reports["evaluation"])
    assert page.title() == "Evaluation of brick"
    charts = page.locator("#scores-and-curves svg")
    assert [charts.nth(i).get_attribute("aria-label").split(":")[0] for i in range(1, charts.count())] == [
        "ROC",
        "Precision and recall",
        "PRO",
    ]
    assert page.locator("#by-type-of-defect tbody tr").count() == 1 + len(KINDS)
    assert page.locator(".panels").count() == 12
    screenshot(page, "evaluation-report")
    page.set_viewport_size(SMALL)
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("link", name="Worst cases").click()
    screenshot(page, "evaluation-cases")


def test_reports_ask_nobody_for_anything(reports, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for name in ("calibration", "evaluation"):
        page.goto(reports[name])
    assert {url for url in asked if not url.startswith("data:")} == {reports["calibration"], reports["evaluation"]}
