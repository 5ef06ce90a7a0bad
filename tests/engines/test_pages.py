import re
from pathlib import Path

import numpy as np
import pytest

from engines import pages
from engines.pictures import relative
from engines.plots import DARK, LIGHT, nice_ticks, standalone, svg, text

CSS = Path(pages.__file__).with_name("pages.css").read_text()


def luminance(colour):
    """WCAG 2's relative luminance of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [pytest.param(LIGHT, id="light"), pytest.param(DARK, id="dark")])
@pytest.mark.parametrize("name", ["ink", "quiet", "good", "defect", "extra"])
def test_everything_written_or_drawn_stands_out_from_the_paper(palette, name):
    assert contrast(palette[name], palette["paper"]) >= 4.5


def test_both_palettes_have_the_same_colours():
    assert LIGHT.keys() == DARK.keys()


def test_every_custom_property_that_the_style_uses_is_defined():
    defined = set(re.findall(r"--([a-z-]+):", CSS)) | LIGHT.keys()
    assert set(re.findall(r"var\(--([a-z-]+)\)", CSS)) <= defined


def test_cells_are_escaped_unless_they_are_markup():
    table = pages.table(["<a>"], [["<b>", pages.Html("<i>x</i>")]], "<c>")
    assert "&lt;a&gt;" in table
    assert "&lt;b&gt;" in table
    assert "<i>x</i>" in table
    assert "<c>" not in table


def test_contents_lead_to_the_sections():
    page = pages.document("t", "k", "h", "l", "", [pages.section("By place", "", "Another heading")])
    assert "<a href='#by-place'>By place</a>" in page
    assert "<section id='by-place'><h2>Another heading</h2>" in page


def test_a_chart_of_its_own_has_real_colours():
    whole = standalone([svg("one", [text(0, 0, "a & b", "var(--ink)", halo=True)], 100), svg("two", [], 50)])
    assert LIGHT["ink"] in whole
    assert "var(" not in whole
    assert "height='150'" in whole


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 1e9), (1.0, 1.0 + 1e-9), (1e-12, 3e-12)])
def test_ticks_lie_inside_and_are_few(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-6 * (high - low) <= value <= high + 1e-6 * (high - low) for value, _ in ticks)


def test_a_good_frame_stays_pale_and_a_map_of_nothing_stays_dark():
    heat = np.array([[-1.0, 0.0, 2.0]], np.float32)
    assert relative(heat, 5.0, None).max() == 1
    assert relative(heat, 20.0, 10.0).max() == 1
    assert relative(heat, 5.0, 10.0).max() == 0.5
    assert relative(-np.ones((2, 2), np.float32), 5.0, 10.0).max() == 0
