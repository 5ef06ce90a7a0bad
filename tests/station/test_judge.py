import itertools
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.geometry import Box
from engines.manifest import Preprocessing
from engines.tiling import Tiler
from station.frames import Frame, Inspection
from station.judge import AlertTracker, find_regions, frame_score, low_level
from station.settings import AlertSettings, JudgeSettings

P = 16
THRESHOLD, MEDIAN = 100.0, 60.0  # with the default hysteresis of 0.25 the low level is 90
QUIET, WEAK, STRONG = 50.0, 95.0, 150.0
START = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)


def grid(height=96, width=96, stride=P):
    return Tiler(Preprocessing(colour="gray", patch_size=P, stride=stride)).grid((height, width))


MAX = JudgeSettings()


def inspection(scores, on=None, judge=MAX):
    on = on or grid()
    patch_scores = np.asarray(scores, np.float32).ravel()
    return Inspection(frame_score(patch_scores, judge), patch_scores, np.zeros(on.prepared_size, np.float32), on, {})


def picture(*hot, score=STRONG, base=QUIET):
    """6 x 6 patches of which those at the (row, column) of ``hot`` stand out."""
    scores = np.full((6, 6), base)
    for row, column in hot:
        scores[row, column] = score
    return inspection(scores)


def frame(seq):
    return Frame(seq, np.zeros((96, 96, 3), np.uint8), START + timedelta(seconds=seq), float(seq), f"{seq}.png")


def feed(tracker, inspections, first=1):
    return [tracker.update(frame(seq), found) for seq, found in enumerate(inspections, first)]


def names(events):
    return [[event.event for event in frame_events] for frame_events in events]


# --- frame score and low level


def test_frame_score_is_the_highest_or_the_mean_of_the_k_highest():
    scores = np.array([1, 5, 3, 9], np.float32)
    assert frame_score(scores, JudgeSettings()) == 9
    assert frame_score(scores, JudgeSettings(frame_score="mean_top_k", top_k=2)) == 7
    assert frame_score(scores, JudgeSettings(frame_score="mean_top_k", top_k=50)) == 4.5


def test_low_level_lies_between_median_and_threshold():
    assert low_level(100, 60, 0.25) == 90
    assert low_level(100, None, 0.25) == 100
    # Good scores close to the threshold: still above them, which a share of the threshold would not be.
    assert low_level(100, 96, 0.25) == 99
    # A threshold set by hand below the median must not raise the low level above it.
    assert low_level(50, 60, 0.25) == 50


# --- regions


def test_a_gap_of_one_patch_is_bridged_and_two_are_not():
    assert len(find_regions(picture((0, 0), (0, 2)), THRESHOLD)) == 1
    assert len(find_regions(picture((0, 0), (0, 3)), THRESHOLD)) == 2
    assert len(find_regions(picture((0, 0), (1, 1)), THRESHOLD)) == 1
    assert len(find_regions(picture((0, 0), (2, 2)), THRESHOLD)) == 1
    assert len(find_regions(picture((0, 0), (3, 2)), THRESHOLD)) == 2


def test_region_has_its_box_and_peak_in_frame_pixels():
    on = Tiler(Preprocessing(colour="gray", patch_size=P, stride=P, scale=0.5), roi=Box(10, 20, 192, 192)).grid(
        (300, 300)
    )
    scores = np.full((6, 6), QUIET)
    scores[1, 2], scores[1, 3] = 120, 130
    (region,) = find_regions(inspection(scores, on), THRESHOLD)
    assert region.score == 130
    assert region.box == Box(10 + 2 * 32, 20 + 32, 64, 32)


def test_no_patch_above_the_level_is_no_region():
    assert find_regions(picture(), THRESHOLD) == []
    assert find_regions(picture((0, 0), score=THRESHOLD), THRESHOLD) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(P, 90), st.integers(P, 90), st.integers(4, P), st.floats(0.02, 0.4), st.integers(0, 2**32 - 1))
def test_regions_are_the_classes_of_patches_at_most_one_patch_apart(height, width, stride, share, seed):
    on = grid(height, width, stride)
    hot = np.random.default_rng(seed).random(on.n) < share
    found = find_regions(inspection(np.where(hot, STRONG + np.arange(on.n), QUIET), on), THRESHOLD)

    groups = [{i} for i in np.flatnonzero(hot)]
    for i, j in itertools.combinations(np.flatnonzero(hot), 2):
        gap = np.abs(on.origins[i] - on.origins[j]).max() - P
        if gap <= P:
            a, b = next(g for g in groups if i in g), next(g for g in groups if j in g)
            if a is not b:
                a |= b
                groups.remove(b)
    expected = set()
    for group in groups:
        boxes = [on.box(int(i)) for i in group]
        union = boxes[0]
        for box in boxes:
            union = union.union(box)
        expected.add((union, STRONG + max(group)))
    assert {(region.box, region.score) for region in found} == expected
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


# --- life cycle


def test_one_defect_that_stays_is_one_alert():
    tracker = AlertTracker(AlertSettings(close_after=2), THRESHOLD, MEDIAN)
    events = feed(tracker, [picture(), *[picture((2, 2))] * 4, *[picture()] * 3])
    assert names(events) == [[], ["open"], [], [], [], [], ["close"], []]
    opened, closed = events[1][0], events[6][0]
    assert opened.id == closed.id == "20240506-070811123-0001"
    assert (opened.first_frame, opened.last_frame, closed.last_frame) == (2, 2, 5)
    assert opened.boxes == (Box(32, 32, 16, 16),)
    assert opened.peak.frame.seq == 2
    assert opened.new_peak
    assert not closed.new_peak
    assert closed.frame_size == (96, 96)


def test_weak_patches_keep_an_alert_open_but_do_not_open_one():
    tracker = AlertTracker(AlertSettings(close_after=1), THRESHOLD, MEDIAN)
    weak = picture((2, 2), score=WEAK)
    assert names(feed(tracker, [weak, picture((2, 2)), weak, weak, picture()])) == [
        [], ["open"], [], [], ["close"]
    ]  # fmt: skip


def test_without_a_median_there_is_no_hysteresis():
    tracker = AlertTracker(AlertSettings(close_after=1), THRESHOLD)
    assert names(feed(tracker, [picture((2, 2)), picture((2, 2), score=WEAK)])) == [["open"], ["close"]]


def test_m_of_n_counts_per_defect():
    tracker = AlertTracker(AlertSettings(open_hits=2, open_window=3, same_defect_distance=0), THRESHOLD, MEDIAN)
    here, there = picture((0, 0)), picture((5, 5))
    # Two frames over the threshold, but of two defects: nothing opens. The third is the second of "here".
    events = feed(tracker, [here, there, here])
    assert names(events) == [[], [], ["open"]]
    assert events[2][0].first_frame == 1
    assert events[2][0].boxes == (Box(0, 0, 16, 16),)


def test_hits_outside_the_window_are_forgotten():
    tracker = AlertTracker(AlertSettings(open_hits=2, open_window=2), THRESHOLD, MEDIAN)
    flicker = [picture((2, 2)), picture(), picture()] * 3
    assert names(feed(tracker, flicker)) == [[]] * 9
    events = feed(tracker, [picture((2, 2))] * 2, 10)
    assert names(events) == [[], ["open"]]
    assert events[1][0].first_frame == 10


def test_distant_defects_are_two_alerts_and_near_ones_are_one():
    settings = AlertSettings(same_defect_distance=0.25)  # 24 pixels: one and a half patches
    events = feed(AlertTracker(settings, THRESHOLD, MEDIAN), [picture((0, 0), (5, 5))])
    assert names(events) == [["open", "open"]]
    assert len({event.id for event in events[0]}) == 2
    assert sorted(event.id for event in events[0]) == [event.id for event in events[0]]
    joined = AlertTracker(AlertSettings(same_defect_distance=1), THRESHOLD, MEDIAN)
    (both,) = feed(joined, [picture((0, 0), (5, 5))])
    assert names([both]) == [["open"]]
    assert set(both[0].boxes) == {Box(0, 0, 16, 16), Box(80, 80, 16, 16)}


def test_a_region_belongs_to_the_nearest_alert():
    tracker = AlertTracker(AlertSettings(close_after=1, same_defect_distance=0.25), THRESHOLD, MEDIAN)
    opened = {event.boxes[0].x: event.id for event in feed(tracker, [picture((0, 0), (0, 3))])[0]}
    (closed,) = tracker.update(frame(2), picture((0, 2)))  # within reach of both, beside the right one
    assert (closed.event, closed.id) == ("close", opened[0])
    assert tracker.open_alerts == (opened[48],)


def test_weak_patches_are_no_part_of_the_picture_beside_strong_ones():
    scores = np.full((6, 6), QUIET)
    scores[0, 0], scores[5, 5] = STRONG, WEAK
    tracker = AlertTracker(AlertSettings(same_defect_distance=1), THRESHOLD, MEDIAN)
    (opened,) = tracker.update(frame(1), inspection(scores))
    assert opened.boxes == (Box(0, 0, 16, 16),)


def test_a_defect_that_travels_is_one_alert_and_is_told_when_it_has_moved():
    tracker = AlertTracker(AlertSettings(same_defect_distance=0.25), THRESHOLD, MEDIAN)
    events = feed(tracker, [picture((0, column)) for column in range(6)])
    # The box has to leave the place last told by a patch.
    assert names(events) == [["open"], [], ["update"], [], ["update"], []]
    assert {event.id for frame_events in events for event in frame_events} == {events[0][0].id}
    assert events[2][0].boxes == (Box(32, 0, 16, 16),)


def test_only_a_noticeable_rise_of_the_peak_is_told():
    tracker = AlertTracker(AlertSettings(), THRESHOLD, MEDIAN)
    peaks = [150.0, 160.0, 164.0, 165.5, 120.0]
    events = feed(tracker, [picture((2, 2), score=peak) for peak in peaks])
    assert names(events) == [["open"], [], [], ["update"], []]
    update = events[3][0]
    assert update.new_peak
    assert update.peak.frame.seq == 4
    assert update.peak.score == update.score == 165.5
    (closing,) = tracker.flush()
    assert (closing.score, closing.peak.score, closing.new_peak) == (120.0, 165.5, False)


def test_mean_top_k_needs_the_frame_to_be_anomalous():
    judge = JudgeSettings(frame_score="mean_top_k", top_k=3)
    scores = np.full((6, 6), QUIET)
    scores[0, 0] = 190
    tracker = AlertTracker(AlertSettings(), THRESHOLD, MEDIAN)
    found = inspection(scores, judge=judge)
    assert low_level(THRESHOLD, MEDIAN, 0.25) < found.score < THRESHOLD
    assert tracker.update(frame(1), found) == []
    scores[0, 1] = scores[1, 0] = STRONG
    assert [e.event for e in tracker.update(frame(2), inspection(scores, judge=judge))] == ["open"]


LEVELS = st.sampled_from([QUIET] * 6 + [WEAK, STRONG, 3 * STRONG])


@settings(max_examples=80, deadline=None)
@given(
    frames=st.lists(st.lists(LEVELS, min_size=36, max_size=36), min_size=1, max_size=14),
    hits=st.integers(1, 3),
    window=st.integers(0, 2),
    close_after=st.integers(1, 3),
    distance=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_every_alert_opens_once_and_closes_once(frames, hits, window, close_after, distance):
    tracker = AlertTracker(
        AlertSettings(
            open_hits=hits, open_window=hits + window, close_after=close_after, same_defect_distance=distance
        ),
        THRESHOLD,
        MEDIAN,
    )
    open_now, ever = [], set()

    def take(events):
        for event in events:
            if event.event == "open":
                assert event.id not in ever
                assert event.id > max(ever, default="")
                ever.add(event.id)
                open_now.append(event.id)
            else:
                assert event.id in open_now
                if event.event == "close":
                    open_now.remove(event.id)
            assert event.first_frame <= event.peak.frame.seq <= event.last_frame
            assert event.peak.score >= event.score
            assert event.peak.score > THRESHOLD
            assert event.boxes
            assert all(Box(0, 0, 96, 96).union(box) == Box(0, 0, 96, 96) for box in event.boxes)
        assert len({event.id for event in events}) == len(events)
        assert list(tracker.open_alerts) == open_now

    for seq, scores in enumerate(frames, 1):
        found = inspection(scores)
        events = tracker.update(frame(seq), found)
        if any(event.event == "open" for event in events):
            assert found.score > THRESHOLD
        if hits == 1 and found.score > THRESHOLD:
            assert tracker.open_alerts
        take(events)
    take(tracker.flush())
    assert open_now == []
    assert tracker.flush() == []


@pytest.mark.parametrize("close_after", [1, 3])
def test_quiet_frames_close_everything(close_after):
    tracker = AlertTracker(AlertSettings(close_after=close_after, same_defect_distance=0), THRESHOLD, MEDIAN)
    feed(tracker, [picture((0, 0), (0, 3), (3, 0), (5, 5))])
    assert len(tracker.open_alerts) == 4
    feed(tracker, [picture()] * (close_after - 1), 2)
    assert len(tracker.open_alerts) == 4
    feed(tracker, [picture()], 10)
    assert tracker.open_alerts == ()
