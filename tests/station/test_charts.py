import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.plots import standalone
from station.calibration import calibrate_good, roc
from station.charts import histogram, roc_chart, run_chart, tail_chart

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
    assert "2 defective score higher →" in texts(parse(histogram(GOOD, few, 150.0)))


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
    tail, alarms = calibrate_good(good, 1e-3)
    parse(histogram(good, None, float(good.max()), tail, (alarms.low, alarms.high)))
    parse(run_chart(good, alarms.threshold))


def test_stacked_charts_are_one_file_that_needs_no_page():
    whole = standalone([histogram(GOOD, None, 150.0), histogram(GOOD, DEFECT, 150.0)])
    assert "var(" not in whole
    assert [chart.get("y") for chart in parse(whole).findall(f"{SVG}svg")] == ["0", "310"]


def test_scores_in_order_keep_what_stands_out_of_many():
    many = np.full(50_000, 100.0)
    many[31_234] = 190.0
    root = parse(run_chart(many + np.arange(many.size) % 7, 150.0))
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) < 1000
    line = 310 - 46
    heights = sorted(line - float(circle.get("cy")) for circle in circles)
    assert heights[-1] > 2 * heights[-2], "the one that stands out is there, far above the others"


def test_histogram_draws_the_tail_that_was_fitted():
    tail, alarms = calibrate_good(GOOD, 1e-3)
    assert "fitted tail" in texts(parse(histogram(GOOD, None, alarms.threshold, tail)))
