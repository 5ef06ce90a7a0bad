import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station.calibration import calibrate_good, roc
from station.charts import histogram, roc_chart, stacked, tail_chart

GOOD = np.random.default_rng(0).gumbel(100, 10, 400)
DEFECT = np.random.default_rng(1).normal(400, 80, 50)
SVG = "{http://www.w3.org/2000/svg}"


def parse(svg):
    """The chart's elements; all coordinates are finite numbers inside the picture."""
    assert "nan" not in svg
    assert "inf" not in svg.replace("in f", "")
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    width, height = float(root.get("width")), float(root.get("height"))
    for circle in root.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx")) <= width
        assert 0 <= float(circle.get("cy")) <= height
    return root


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def test_histogram_names_counts_and_threshold():
    shown = texts(parse(histogram(GOOD, DEFECT, 150.0)))
    assert {"400 good", "50 defective", "threshold 150"} <= set(shown)


def test_histogram_tells_of_defects_beyond_its_right_end():
    few = np.array([160.0, 170.0, 1e6, 2e6])
    assert "2 defective score higher" in texts(parse(histogram(GOOD, few, 150.0)))


@pytest.mark.parametrize("rate", [0.3, 1e-2, 1e-4, 1e-7])
def test_tail_chart_shows_the_budget(rate):
    tail, alarms = calibrate_good(GOOD, rate)
    svg = tail_chart(GOOD, tail.exceedance, tail.level, rate, alarms.threshold, (alarms.low, alarms.high))
    shown = texts(parse(svg))
    assert any(text.startswith("budget: ") for text in shown)
    assert f"budget met at {alarms.threshold:.5g}" in shown


def test_tail_chart_of_many_frames_stays_small():
    many = np.random.default_rng(2).gumbel(100, 10, 100_000)
    tail, alarms = calibrate_good(many[:5000], 1e-3)
    svg = tail_chart(many, tail.exceedance, tail.level, 1e-3, alarms.threshold, (alarms.low, alarms.high))
    assert len(svg) < 60_000


def test_roc_chart_marks_the_threshold():
    _, found, false = roc(GOOD, DEFECT)
    root = parse(roc_chart(found, false, 0.9876, (0.02, 0.94)))
    assert any("0.9876" in text for text in texts(root))
    assert "at the threshold 94.0 % found, 2.0 % false" in texts(root)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 1e9), st.floats(0, 1e6))
def test_charts_take_scores_of_any_size(scale, offset):
    good = offset + scale * GOOD
    parse(histogram(good, None, float(good.max())))


def test_stacked_charts_are_one_file():
    root = parse(stacked([histogram(GOOD, None, 150.0), histogram(GOOD, DEFECT, 150.0)]))
    assert [chart.get("y") for chart in root.findall(f"{SVG}svg")] == ["0", "340"]
