"""docs/choosing.md: its formulas are right, its tables made with them, its pictures those that the code draws."""

import importlib.util
import math
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.station_process import REPOSITORY

DOCS = REPOSITORY / "docs"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


choosing, pictures = load("make_choosing"), load("make_pictures")
PAGE = (DOCS / "choosing.md").read_text()


def test_the_tables_are_what_make_docs_writes():
    assert choosing.filled(PAGE) == PAGE, "run `make docs`"


@given(st.floats(50, 5000), st.floats(1e-3, 1))
def test_the_lens_forms_an_image(distance: float, beta: float):
    """The lens equation, from which the page's formula follows: 1 / f = 1 / D + 1 / (β D)."""
    focal = choosing.focal_length(distance, beta)
    assert math.isclose(1 / focal, 1 / distance + 1 / (beta * distance))
    assert math.isclose(choosing.working_distance(focal, beta), distance)


@pytest.mark.parametrize("line", choosing.LINES, ids=lambda line: line.material)
def test_the_lens_on_sale_sees_what_it_shall(line):
    """The rays through the middle of the lens, from the sensor's edge to the material."""
    image = choosing.working_distance(line.lens, line.beta) * line.beta
    seen = line.columns * line.pitch_um / 1000 / image * choosing.working_distance(line.lens, line.beta)
    assert math.isclose(seen, line.view[0])
    assert line.view[0] / line.columns * line.pixels == pytest.approx(line.smallest)


def test_exposure_and_frame_rate():
    """Steel: 3 m/s at 0.1 mm a pixel is 30,000 pixels a second; a view of 204.8 mm passes in 68.3 ms."""
    assert choosing.longest_exposure(3, 0.1) == pytest.approx(1 / 30_000)
    assert choosing.frames_per_second(3, 204.8, looks=1) == pytest.approx(1 / 0.0682667, rel=1e-4)
    assert choosing.longest_exposure(0, 0.1) == math.inf


@given(st.floats(50, 5000), st.floats(40, 2000), st.floats(0, 0.4))
def test_cameras_side_by_side_cover_the_width(width: float, view: float, overlap: float):
    n = choosing.cameras_across(width, view, overlap)
    covered = view + (n - 1) * view * (1 - overlap)
    assert covered >= width * (1 - 1e-6)
    assert n == 1 or covered - view * (1 - overlap) < width * (1 + 1e-6)


def test_depth_of_field_is_one_pixel_of_blur_at_either_end():
    """A point that leaves its plane by δ is blurred over δ β² / N / (1 + β) on the sensor, to first order."""
    depth = choosing.depth_of_field(4, 3.45, 0.0138)
    focal, distance = 12.0, choosing.working_distance(12, 0.0138)
    near = distance - depth / 2
    image, blurred = distance * 0.0138, 1 / (1 / focal - 1 / near)
    spot = focal / 4 * abs(blurred - image) / blurred
    assert spot == pytest.approx(3.45e-3, rel=0.1)


def test_numbers_as_people_write_them():
    assert [choosing.number(v) for v in (0.0138, 9.0, 612.0, 1600, 4788, 0.125, 20)] == [
        "0.0138", "9", "612", "1,600", "4,788", "0.125", "20",
    ]  # fmt: skip


def test_the_pictures_are_what_the_code_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = pictures.margins()
    monkeypatch.setattr(pictures, "margins", lambda: found)
    pictures.main(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert {path.name for path in (DOCS / "images").glob("choosing-*.png")} < set(drawn)
    shown = re.findall(r"images/([\w-]+\.png)", PAGE + (DOCS / "tutorial.md").read_text())
    assert set(shown) - set(drawn) == {"tutorial-alert.png"}  # which the tutorial's test takes
    assert set(drawn) - set(shown) == set()
    if mpl.__version__.split(".")[:2] == ["3", "11"]:  # others set type and lines a little differently
        for name in drawn:
            now, kept = (np.asarray(Image.open(f / name).convert("L"), int) for f in (tmp_path, DOCS / "images"))
            assert now.shape == kept.shape, "run `make docs`"
            assert np.abs(now - kept).mean() < 2, f"{name}: run `make docs`"
    # What the page says of the measurement.
    sizes = pictures.SIZES
    from_size = {
        contrast: next((b for (a, b), m in zip(pairwise((0, *sizes)), found[contrast], strict=True) if m > 1), None)
        for contrast in found
    }
    for words in ("found from four pixels", "takes 60 % of the light from six", "takes 30 % from six"):
        assert words in " ".join(PAGE.split())
    assert (from_size[1.0], from_size[0.3]) == (4, 6)
    assert from_size[0.6] in (4, 6), "at four it meets the threshold just about"
    for series in found.values():  # up to where a spot begins to fill a patch
        assert all(later > earlier for earlier, later in pairwise(series[: sizes.index(8) + 1]))


def test_a_patch_covers_what_the_page_says():
    titles = {1: 16, 2: 64}
    for scale, n in titles.items():
        assert choosing.patches(256, 256, scale) == n
    assert choosing.patches(256, 256, 1, 32) == 49
