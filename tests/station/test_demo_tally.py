import numpy as np
import pytest

from engines.geometry import Box
from station.demo.contact_sheet import draw_contact_sheet
from station.demo.sample_line import SampleLine
from station.demo.tally import Tally


@pytest.fixture
def tally():
    return Tally(SampleLine(0, 120))


def middle(planted):
    frames = planted.frames(120)
    return frames[len(frames) // 2]


def test_an_alert_on_the_defect_finds_it(tally):
    planted = tally.line.planted[1]
    index = middle(planted)
    assert tally.take("a", index + 1, [planted.box(index)]) == {1}
    assert tally.alerts_for(1) == ["a"]
    assert tally.alerts_for(0) == []
    assert tally.false_alarms == []
    n_found = {kind: found for kind, (_, found) in tally.by_kind().items()}
    assert n_found.pop(planted.kind) == 1
    assert set(n_found.values()) == {0}
    assert sum(n for n, _ in tally.by_kind().values()) == len(tally.line.planted)


def test_the_right_place_at_the_wrong_time_is_a_false_alarm(tally):
    planted = tally.line.planted[1]
    box = planted.box(middle(planted))
    wrong = planted.frames(120).stop + 1
    assert planted.box(wrong) is None
    assert tally.take("a", wrong + 1, [box]) == set()
    assert tally.false_alarms == ["a"]


def test_the_right_time_at_the_wrong_place_is_a_false_alarm(tally):
    planted = tally.line.planted[1]
    index = middle(planted)
    box = planted.box(index)
    beside = Box(0, 0, 4, 4) if box.x > 4 or box.y > 4 else Box(250, 250, 4, 4)
    assert tally.take("a", index + 1, [beside]) == set()
    assert tally.false_alarms == ["a"]


def test_one_message_on_the_defect_is_enough(tally):
    planted = tally.line.planted[0]
    index = middle(planted)
    tally.take("a", index, [Box(0, 0, 1, 1)])
    assert tally.false_alarms == ["a"]
    tally.take("a", index + 1, [Box(0, 0, 1, 1), planted.box(index)])
    assert tally.false_alarms == []
    tally.take("a", index + 90, [Box(0, 0, 1, 1)])
    assert tally.alerts_for(0) == ["a"]


def test_two_alerts_on_one_defect_find_it_once(tally):
    planted = tally.line.planted[0]
    index = middle(planted)
    for id_ in "ab":
        tally.take(id_, index + 1, [planted.box(index)])
    assert sum(found for _, found in tally.by_kind().values()) == 1


def test_the_contact_sheet_shows_every_planted_defect_and_every_false_alarm(tally):
    planted = tally.line.planted[0]
    index = middle(planted)
    tally.take("hit", index + 1, [planted.box(index)])
    n = len(tally.line.planted)
    before = draw_contact_sheet(tally, {})
    pictures = {
        "hit": np.full((300, 256, 3), (255, 0, 0), np.uint8),
        "fa": np.full((100, 200, 3), (0, 255, 0), np.uint8),
    }
    for i in range(6 - n % 5):
        tally.take(f"fa{i}", 1, [])
        pictures[f"fa{i}"] = pictures["fa"]
    sheet = draw_contact_sheet(tally, pictures)
    assert sheet.shape[1] == before.shape[1]
    assert sheet.shape[0] > before.shape[0]
    blue, green = ((sheet == colour).all(axis=2).mean() for colour in ((255, 0, 0), (0, 255, 0)))
    assert blue > 0
    assert green > 0


def test_there_is_no_contact_sheet_of_nothing():
    assert draw_contact_sheet(Tally(SampleLine(0, 20, defects=False)), {}) is None
