"""One alert, from messages that may come twice, late, or not at all."""

from hypothesis import given
from hypothesis import strategies as st

from station.dashboard.records import merge
from station.messages import Rectangle, ScoredPatch
from tests.support.dashboard import alert_message

PATH = "mill/3/left"
_LIFE = [
    alert_message("a1", opened_at="2024-01-01T00:00:00Z", patches=[ScoredPatch(x=0, y=0, w=8, h=8, score=60)]),
    alert_message("a1", "update", opened_at="2024-01-01T00:00:00Z", last_frame=6, peak_score=70.0),
    alert_message("a1", "update", opened_at="2024-01-01T00:00:00Z", last_frame=8, peak_score=80.0),
    alert_message("a1", "close", opened_at="2024-01-01T00:00:00Z", last_frame=9, peak_score=90.0),
]


def _told(messages):
    record = None
    for message in messages:
        record = merge(record, PATH, message) or record
    return record


def test_a_life():
    record = _told(_LIFE)
    assert (record.state, record.peak_score, record.last_frame) == ("closed", 90.0, 9)
    assert record.closed_at == _LIFE[-1].at
    assert [patch.score for patch in record.patches] == [60.0]


@given(st.lists(st.integers(0, 3), max_size=8))
def test_messages_that_come_again_change_nothing(again):
    """QoS 1: every message comes in order, and any of those before may come again in between."""
    messages, told = [], 0
    for number in again:
        if told < 4:
            messages.append(_LIFE[told])
            told += 1
        messages.append(_LIFE[min(number, told - 1)])
    messages += _LIFE[told:]
    assert _told(messages) == _told(_LIFE)


def test_an_alert_whose_beginning_was_missed():
    record = _told(_LIFE[-1:])
    assert (record.state, record.first_frame) == ("closed", 4)


def test_scores_that_are_no_numbers_are_left_out():
    patches = [ScoredPatch(x=0, y=0, w=8, h=8, score=float("nan")), ScoredPatch(x=8, y=0, w=8, h=8, score=1.0)]
    record = _told([alert_message("a1", patches=patches)])
    assert [patch.score for patch in record.patches] == [1.0]


def test_lists_do_without_patches():
    record = _told(_LIFE)
    assert record.view()["patches"]
    assert record.view(patches=False)["patches"] == []
    assert record.view()["image_url"] is None


def test_the_place_in_the_picture_is_not_where_a_moving_defect_was_last_seen() -> None:
    first, last = Rectangle(x=0, y=0, w=16, h=16), Rectangle(x=0, y=16, w=16, h=16)
    record = _told([alert_message("a1"), alert_message("a1", "close", boxes=[last], peak_boxes=[first])])
    assert (record.boxes, record.peak_boxes) == ((last,), (first,))
    assert _told([alert_message("a1")]).peak_boxes == (first,), "a station of before tells no other place"
