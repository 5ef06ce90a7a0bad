"""Charts: no peak is left out, whatever the span; a gap stays one."""

import math

import pytest

from station.dashboard.archive import Archive
from station.dashboard.charting import MAX_POINTS, chart
from station.dashboard.fleet import Fleet
from station.dashboard.records import ScoreRow, merge
from tests.station.dashboard.test_fleet import score, status
from tests.support.dashboard import alert_message

PATH = "mill/3/left"
NOW = 1_700_000_010.0


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setattr("station.dashboard.archive.SCORE_SECONDS", math.inf)  # the tests' now is long ago
    archive = Archive(tmp_path, 16, 90)
    yield archive
    archive.close()


@pytest.fixture
def fleet():
    fleet = Fleet()
    fleet.set_broker(None)
    fleet.take(PATH, status(), NOW)
    for second in range(600):
        if not 100 <= second < 200:  # paused
            fleet.take(PATH, score(99.0 if second == 300 else 20.0), NOW - 599 + second)
    return fleet


@pytest.mark.parametrize("minutes", [5, 10, 60, 240, 1440])
def test_few_points_and_every_peak(fleet, archive, minutes):
    found = chart(fleet, archive, PATH, minutes, NOW)
    assert len(found["t"]) == len(found["max"]) == len(found["threshold"]) <= MAX_POINTS + 1
    steps = {after - before for before, after in zip(found["t"], found["t"][1:], strict=False)}
    assert len(steps) == 1
    assert found["t"][-1] <= NOW * 1000 < found["t"][-1] + steps.pop()
    assert max(value for value in found["max"] if value is not None) == 99.0


def test_a_gap_stays_a_gap(fleet, archive):
    found = chart(fleet, archive, PATH, 10, NOW)
    assert found["max"][99] == 20.0
    assert found["max"][100:200] == [None] * 100
    assert found["max"][200] == 20.0


def test_hours_come_from_the_archive(fleet, archive):
    hours_ago = int(NOW) // 30 * 30 - 4 * 3600
    archive.put_scores([ScoreRow(PATH, hours_ago, 77.0, 40.0), ScoreRow("mill/3/right", hours_ago, 1.0, 40.0)])
    found = chart(fleet, archive, PATH, 360, NOW)
    told = {t: value for t, value in zip(found["t"], found["max"], strict=True) if value is not None}
    assert told[hours_ago * 1000] == 77.0
    assert 99.0 in told.values()


def test_alerts_of_the_time(fleet, archive):
    for id_, at in (("before", "2023-11-14T20:00:00Z"), ("within", "2023-11-14T22:10:00Z")):
        archive.put_alert(merge(None, PATH, alert_message(id_, "close", opened_at=at)))
    assert [alert["id"] for alert in chart(fleet, archive, PATH, 60, NOW)["alerts"]] == ["within"]


def test_a_station_without_scores(archive):
    assert set(chart(Fleet(), archive, PATH, 60, NOW)["max"]) == {None}
