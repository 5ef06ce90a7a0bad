from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from station.calibration import calibrate_labelled, summarize
from station.report import Exhibit, explain, render
from tests.support.bundles import make_bundle
from tests.support.calibrations import GOOD, make_calibration

JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
DEFECT = GOOD[:80] + 60


class Page(HTMLParser):
    """Collects what a page is made of, and checks that its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words, self.stack = [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "path", "circle", "rect"):
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


def test_page_stands_alone_and_escapes_what_it_is_given(labelled):
    exhibit = Exhibit("<script>alert(1)</script>.png", 12.0, JPEG)
    page = Page(render(labelled, ["<svg><title>c</title></svg>"], [exhibit], [exhibit], "<i>.json"))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "i" not in page.tags
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "a <b>warning</b> & more" in page.words


def test_page_without_defects_has_no_section_for_them(bundle):
    page = Page(render(make_calibration(bundle), [], [Exhibit("", 1.0, JPEG)], [], "calibration.json"))
    assert "The good frames that score highest" in page.words
    assert "The defects that score lowest" not in page.words


def test_words_for_a_false_alarm_budget(bundle):
    words = " ".join(explain(make_calibration(bundle)))
    assert "about 1 in 100 good frames" in words
    assert "36 false alarms an hour" in words


def test_words_for_labelled_frames(labelled):
    words = " ".join(explain(labelled))
    assert f"auROC {labelled.separation.auroc:.4f}" in words
    assert "--false-alarms 0.01" in words
