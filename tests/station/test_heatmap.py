import cv2
import numpy as np
import pytest

from engines.geometry import Box
from engines.manifest import Preprocessing
from engines.pictures import encode_jpeg
from engines.tiling import Tiler
from station.frames import Inspection
from station.heatmap import MIN_SIDE, draw

P = 32


def inspected(height, width, score=200.0, hot=0, roi=None):
    """A grey frame, and an inspection in which patch ``hot`` has a residual and nothing else has."""
    grid = Tiler(Preprocessing(colour="gray", patch_size=P, stride=P), roi).grid((height, width))
    residual = np.zeros((grid.n, P, P), np.float32)
    residual[hot] = 0.6
    image = np.full((height, width, 3), 128, np.uint8)
    return image, Inspection(score, np.zeros(grid.n, np.float32), grid.assemble(residual), grid, {})


@pytest.mark.parametrize("size", [(40, 50), (512, 512), (300, 1200), (900, 120), (1200, 1600)])
@pytest.mark.parametrize("threshold", [None, 100.0, 300.0])
def test_picture_holds_the_frame_and_a_caption(size, threshold):
    image, inspection = inspected(*size)
    before = image.copy()
    picture = draw(image, inspection, threshold, [Box(0, 0, 32, 32)])
    scale = max(1, MIN_SIDE / max(size))
    assert picture.shape[1] == round(size[1] * scale)
    caption = picture[round(size[0] * scale) :]
    assert caption.shape[0] >= 24
    # Letters, with a margin on every side: nothing is cut off.
    assert (caption > 200).all(axis=2).any()
    assert (caption[:, -2:] == 32).all()
    assert (caption[-2:] == 32).all()
    assert (image == before).all()


def test_heat_lies_where_the_residual_is():
    image, inspection = inspected(512, 512, hot=17)  # second row, second column
    picture = draw(image, inspection, 100.0)[:512]
    hot = picture[32:64, 32:64].reshape(-1, 3).astype(int)
    assert np.abs(hot - 128).max() > 60
    cold = picture[128:]
    assert (cold == 128).all()


def test_good_frame_stays_pale():
    image, below = inspected(512, 512, score=50.0)
    _, above = inspected(512, 512, score=150.0)
    pale, strong = draw(image, below, 100.0)[:512], draw(image, above, 100.0)[:512]
    grey = np.full_like(pale, 128).astype(int)
    assert np.abs(pale - grey).sum() < np.abs(strong - grey).sum()


def test_frame_without_any_residual_is_left_as_it_is():
    image, inspection = inspected(512, 512, score=0.0)
    inspection.heat[:] = 0
    assert (draw(image, inspection, 100.0)[:512] == image).all()


def test_boxes_reach_the_border_without_being_cut():
    image, inspection = inspected(512, 512, hot=0)
    picture = draw(image, inspection, None, [Box(448, 448, 64, 64)])[:512]
    assert (picture[450:510, 510:] == 255).all()
    assert (picture[510:, 450:510] == 255).all()


def test_region_of_interest_is_outlined():
    image, inspection = inspected(512, 512, roi=Box(100, 100, 300, 300))
    inspection.heat[:] = 0
    picture = draw(image, inspection, 100.0)[:512]
    assert (picture[200, 98:103] != 128).any()
    assert (picture[:90] == 128).all()
    assert (picture[200:300, 200:300] == 128).all()


def test_jpeg_is_shrunk_to_the_longest_side():
    picture = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(picture, 300, 80), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (200, 300, 3)
    assert len(encode_jpeg(picture, 300, 30)) < len(encode_jpeg(picture, 300, 95))
    as_is = cv2.imdecode(np.frombuffer(encode_jpeg(picture, 2000, 80), np.uint8), cv2.IMREAD_COLOR)
    assert as_is.shape == (600, 900, 3)
