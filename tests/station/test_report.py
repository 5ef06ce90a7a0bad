from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from station.budget import Pace
from station.calibration import Chance, FalseAlarmThreshold, PlantedKind, calibrate_labelled, summarize
from station.report import Exhibit, Option, Outlook, Report, explain, render
from station.settings import AlertSettings
from station.survey import Finding
from tests.support.bundles import make_bundle
from tests.support.calibrations import GOOD, make_calibration

PICTURE = np.zeros((8, 8, 3), np.uint8)
OUTLOOK = Outlook(
    chance=Chance(1e-3, 1e-4, 5e-3),
    pace=Pace(10.0, "camera.fps", AlertSettings()),
    found=None,
    options=(
        Option(
            "1/day (1 in 864,000 good frames)", FalseAlarmThreshold(rate=1 / 864e3, threshold=9, low=8, high=10), None
        ),
    ),
)
DEFECT = GOOD[:80] + 60


class Page(HTMLParser):
    """Collects what a page is made of, and checks that its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words, self.ids, self.stack = [], [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in ("meta", "link", "br", "img", "path", "circle", "rect"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def labelled(bundle):
    separation = calibrate_labelled(GOOD, DEFECT)
    return make_calibration(
        bundle,
        separation=separation,
        method="balanced_accuracy",
        threshold=separation.threshold,
        n_defect=DEFECT.size,
        defect=summarize(DEFECT),
        warnings=("a <b>warning</b> & more",),
    )


def exhibit(name="", score=1.0):
    return Exhibit.of(name, score, PICTURE, 8)


def page(calibration, outlook=OUTLOOK, **parts):
    nothing = {"charts": [], "patches": [], "good": [exhibit()], "defect": [], "places": None, "findings": []}
    return Page(render(Report(calibration, outlook, out=parts.pop("out", "calibration.json"), **(nothing | parts))))


def words_of(found):
    return " ".join(" ".join(found.words).split())


def test_page_stands_alone_and_escapes_what_it_is_given(labelled):
    evil = exhibit("<script>alert(1)</script>.png", 12.0)
    found = page(
        labelled,
        charts=[("<svg></svg>", "a <script>")],
        patches=[evil],
        good=[evil],
        defect=[evil],
        out="<i>.json",
    )
    assert not {"script", "i", "iframe", "object", "form"} & set(found.tags)
    outside = [source for source in found.sources if not source.startswith(("data:", "#"))]
    assert outside == []
    assert "a <b>warning</b> & more" in found.words


def test_every_link_of_the_page_leads_somewhere(labelled):
    finding = Finding("left", 0.4)
    found = page(
        labelled,
        replace(OUTLOOK, found=70),
        patches=[exhibit()],
        defect=[exhibit()],
        places=("<svg></svg>", "<svg></svg>"),
        findings=[finding],
    )
    targets = {source[1:] for source in found.sources if source.startswith("#")}
    assert {"highest-patches", "by-place", "lowest-defects", "false-alarms"} <= targets
    assert targets <= set(found.ids)
    assert finding.words() in found.words
    assert "See which 10 of 80 defects pass" in found.words


def test_page_without_defects_has_no_section_for_them(bundle):
    found = page(make_calibration(bundle))
    assert "The good frames that score highest" in found.words
    assert "The defects that score lowest" not in found.words
    assert "add --defect FOLDER" not in found.words
    assert "Put a few known defects into a folder and add" in words_of(found)


def test_words_for_a_false_alarm_budget(bundle):
    words = " ".join(explain(make_calibration(bundle), OUTLOOK))
    assert "about 1 in 100 good frames" in words
    assert "At 10 frames a second (camera.fps) about 290 good frames score above it in a shift of 8 hours" in words
    assert "(95 % interval 29 to 1,400)" in words
    assert "alerts are at most that many" in words


def test_words_for_planted_defects(labelled):
    kinds = {"scratch": PlantedKind(n=40, found=31), "hole": PlantedKind(n=40, found=40)}
    planted = labelled.model_copy(update={"method": "planted_defects", "planted": kinds})
    words = " ".join(explain(planted, OUTLOOK))
    assert "it is the highest" in words
    assert "Of 80 defects that were planted into good frames it finds: scratch 31 of 40, hole 40 of 40 (auROC" in words
    found = words_of(page(planted, replace(OUTLOOK, found=71), defect=[exhibit("scratch in 003.png")]))
    assert "this calibration: planted defects" in found
    assert "planted defects found" in found
    assert "The planted defects that score lowest" in found
    assert "Put a few known defects into a folder and add" in found
    assert "--plant" not in found, "it is there already"


def test_words_without_a_frame_rate_say_how_to_give_one(bundle):
    words = " ".join(explain(make_calibration(bundle), replace(OUTLOOK, pace=None)))
    assert "At one frame a second about 29 good frames score above it" in words
    assert "add --fps FRAMES_PER_SECOND" in words


def test_table_tells_what_other_budgets_mean_and_how_far_they_reach(bundle):
    found = words_of(page(make_calibration(bundle)))
    assert "this calibration: 1 in 100 good frames" in found
    assert "1/day (1 in 864,000 good frames)" in found
    assert "1,728 × rarer than 500 frames can show" in found


def test_words_for_labelled_frames(labelled):
    words = " ".join(explain(labelled, OUTLOOK))
    assert f"auROC {labelled.separation.auroc:.4f}" in words
    assert "--false-alarms 0.01" in words
