import importlib.machinery
import importlib.util

import cv2
import numpy as np
import pytest

from station.demo import textures
from station.demo.textures import DemoError, belt, photograph


def test_the_photograph_is_the_grey_brick_wall():
    image = photograph()
    assert image.shape == (512, 512)
    assert image.dtype == np.uint8
    assert 90 < image.mean() < 130


def test_without_scikit_image_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoError, match=r"pip install 'cbigan-station\[demo\]'"):
        photograph()


@pytest.mark.parametrize(
    "content", [None, b"no picture", cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()]
)
def test_a_missing_or_altered_picture_is_named(monkeypatch, tmp_path, content):
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data" / "brick.png").write_bytes(content)
    spec = importlib.machinery.ModuleSpec("skimage", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DemoError, match=r"brick\.png is missing or altered"):
        photograph()


@pytest.mark.parametrize("part", ["training", "line"])
def test_the_seams_of_a_belt_are_no_steps(part):
    web = belt(part)
    assert web.shape[1] == textures.WIDTH
    around = np.vstack([web[-1:], web])
    steps = np.abs(np.diff(around, axis=0)).mean(axis=1)
    turning_points = [0, len(web) // 2]
    assert steps[turning_points].max() < np.median(steps)


@pytest.mark.parametrize("part", ["training", "line"])
def test_every_column_of_bricks_keeps_its_width_along_the_belt(part):
    # Joints are bright: where they are in the first stretch they must be in every other.
    stretches = np.array_split(belt(part), 8)
    joints = [np.flatnonzero(q.mean(axis=0)[8:-8] > q.mean() + 15) for q in stretches]  # not those cut by the side
    for other in joints[1:]:
        distance = np.abs(other[:, None] - joints[0][None]).min(axis=1)
        assert distance.max() <= 6


def test_the_two_parts_share_no_pixel_of_the_photograph():
    pixels = {}
    for part, (left, top, right, bottom) in textures._PARTS.items():
        x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        points = np.stack([x.ravel(), y.ravel()], axis=1)[None]
        back = cv2.perspectiveTransform(points, np.linalg.inv(textures._PHOTOGRAPH_TO_WALL))[0]
        assert back.min() >= -1
        assert back.max() < 512
        pixels[part] = set(map(tuple, np.floor(back).astype(int)))
    shared = pixels["training"] & pixels["line"]
    # One joint between two bricks is where both end; rounding may put a pixel of it on both sides.
    assert len(shared) < 0.005 * len(pixels["line"])


def test_a_belt_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        belt("line")[0, 0] = 0
