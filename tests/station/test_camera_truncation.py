"""Pictures of which only the upper part arrived. What FFmpeg really makes of them: test_camera_streams.py."""

import numpy as np
import pytest

from station.camera.truncation import ARMED_AFTER, TruncationCheck
from tests.support.camera_faults import stale_from
from tests.support.webs import web

SIZES = [(192, 256), (120, 160), (216, 384)]  # 216 is no multiple of 16, as 1080 is none


def verdicts(pictures: list[np.ndarray]) -> list[str | None]:
    check = TruncationCheck()
    return [check.check(picture) for picture in pictures]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_the_missing_end_is_found_once_and_again(size: tuple[int, int], share: float) -> None:
    pictures = [web(i, size) for i in range(40)]
    for i in (15, 16, 17, 30):
        pictures[i] = stale_from(pictures[i], pictures[i - 1], share)
    found = verdicts(pictures)
    assert [i for i, words in enumerate(found) if words] == [15, 16, 17, 30]
    lost = int(str(found[15]).partition("%")[0].split()[-1]) / 100
    assert lost == pytest.approx(share, abs=0.1)


def test_the_last_row_repeated_as_opencv_4_does_it() -> None:
    pictures = [web(i) for i in range(20)]
    cut = pictures[15].copy()
    cut[100:] = cut[99]
    pictures[15] = cut
    assert [i for i, words in enumerate(verdicts(pictures)) if words] == [15]


def test_whole_pictures_pass() -> None:
    assert verdicts([web(i) for i in range(100)]) == [None] * 100


@pytest.mark.parametrize("below", [0, 120, 255])
def test_a_corner_without_noise_disarms_it(below: int) -> None:
    """A black corner is the same in every picture, and so may everything be that is new above it."""
    pictures = [web(i).copy() for i in range(50)]
    for picture in pictures:
        picture[100:] = below
    assert verdicts(pictures) == [None] * 50


def test_a_frozen_picture_or_one_that_moves_by_halves_is_not_cut_short() -> None:
    alive = [web(i) for i in range(20)]
    assert verdicts([*alive, *[alive[-1]] * 30]) == [None] * 50
    drawing = np.full((96, 128, 3), 128, np.uint8)
    other = drawing.copy()
    other[:40] = 20
    assert verdicts([drawing, other] * 20) == [None] * 40


def test_another_size_begins_anew() -> None:
    small = [web(i, (96, 128)) for i in range(30)]
    cut = stale_from(small[1], small[0], 0.5)
    assert verdicts([*[web(i) for i in range(20)], small[0], cut]) == [None] * 22


def test_it_takes_some_pictures_to_know_the_noise() -> None:
    pictures = [web(i) for i in range(ARMED_AFTER)]
    assert verdicts([*pictures, stale_from(web(50), pictures[-1], 0.5)])[-1] is None
