"""Stations as they are now: the dashboard never says more than it knows."""

from datetime import datetime, timedelta, timezone

import pytest

from station.dashboard.fleet import MAX_SHOWN, ROW_SECONDS, Fleet
from station.dashboard.records import merge
from station.messages import Score, Status
from tests.support.dashboard import alert_message, health_message, info_message, picture

PATH = "mill/3/left"
NOW = 1_700_000_000.0


def status(state="online", *reasons, seq=1, **more):
    return Status(state=state, reasons=reasons, session="s", seq=seq, **more)


def score(value=20.0, number=1):
    at = datetime(2024, 1, 1, tzinfo=timezone.utc)
    return Score(
        frame=number, captured_at=at, score=value, threshold=40, anomalous=value > 40, latency_ms={"total": 9.0}, seq=1
    )


@pytest.fixture
def fleet():
    fleet = Fleet()
    fleet.set_broker(None)
    return fleet


def test_as_the_station_says(fleet):
    fleet.take(PATH, status("degraded", "camera-black: mean 2"), NOW)
    view = fleet.view(PATH, NOW)
    assert (view["state"], view["reasons"]) == ("degraded", ["camera-black: mean 2"])
    fleet.take(PATH, status(), NOW + 1)
    assert fleet.view(PATH, NOW)["state"] == "online"


def test_since_when(fleet):
    at = datetime(2024, 5, 1, tzinfo=timezone.utc)
    fleet.take(PATH, status(at=at), NOW, retained=True)
    fleet.take(PATH, status(at=at + timedelta(hours=1)), NOW)  # nothing new
    assert fleet.view(PATH, NOW)["since"] == "2024-05-01T00:00:00.000Z"
    # A last will was written at log-in: it tells not when the station vanished.
    fleet.take(PATH, status("offline", seq=0, at=at), NOW)
    assert fleet.view(PATH, NOW)["since"] == "2023-11-14T22:13:20.000Z"
    other = Fleet()
    other.take(PATH, status("offline", seq=0, at=at), NOW, retained=True)
    assert other.view(PATH, NOW)["since"] is None


def test_without_the_broker_nothing_is_known(fleet):
    fleet.take(PATH, status(), NOW)
    fleet.set_broker("connection lost")
    assert fleet.view(PATH, NOW)["state"] == "unknown"
    fleet.set_broker(None)
    view = fleet.view(PATH, NOW)
    assert view["state"] == "unknown"  # it may have gone meanwhile
    assert view["reasons"] == ["not-confirmed: was online when last heard of; nothing was heard since"]
    fleet.take(PATH, score(), NOW)
    assert fleet.view(PATH, NOW)["state"] == "online"


def test_a_station_of_an_earlier_run_is_remembered_but_not_believed(fleet):
    fleet.remember(PATH, status(), NOW - 3600, None)
    view = fleet.view(PATH, NOW)
    assert (view["state"], view["seen_at"]) == ("unknown", "2023-11-14T21:13:20.000Z")


def test_silence_is_noticed(fleet):
    fleet.take(PATH, status(), NOW)
    fleet.take(PATH, health_message(), NOW)
    fleet.take(PATH, health_message(), NOW + 10)
    fleet.look_again(NOW + 11)
    fleet.changes()
    fleet.look_again(NOW + 12)
    assert fleet.changes() == {}
    fleet.look_again(NOW + 60)
    assert fleet.changes() == {PATH: set()}
    assert fleet.view(PATH, NOW + 60)["reasons"] == ["silent: nothing was heard for 50 s"]
    fleet.take(PATH, score(), NOW + 61)
    assert fleet.view(PATH, NOW + 61)["state"] == "online"


def test_the_broker_s_word_for_a_station_that_never_speaks(fleet):
    """A broker that was killed knows no last wills, and may have kept an `online` of long ago."""
    fleet.take(PATH, status(), NOW, retained=True)
    assert fleet.view(PATH, NOW + 60)["state"] == "online"
    assert fleet.view(PATH, NOW + 301)["reasons"] == ["silent: nothing was heard for 301 s"]


def test_what_only_health_tells_is_told_beside(fleet):
    fleet.take(PATH, status("degraded", "camera-black: mean 2"), NOW)
    fleet.take(PATH, health_message(reasons=["camera-black: mean 1", "drift: higher"]), NOW)
    assert fleet.view(PATH, NOW)["reasons"] == ["camera-black: mean 2", "drift: higher"]
    fleet.take(PATH, status(), NOW)  # the camera sees again; health will say so later
    assert fleet.view(PATH, NOW)["reasons"] == ["drift: higher"]


def test_only_what_changed_is_told(fleet):
    fleet.take(PATH, status(), NOW)
    assert fleet.changes() == {PATH: {"info", "health", "spark"}}  # new
    fleet.take(PATH, info_message(), NOW)
    assert fleet.changes() == {PATH: {"info"}}
    fleet.take(PATH, score(), NOW)
    fleet.take(PATH, score(), NOW + 0.1)
    assert fleet.changes() == {PATH: {"spark"}}
    fleet.take(PATH, score(), NOW + 0.2)
    assert fleet.changes() == {PATH: set()}
    assert "spark" not in fleet.view(PATH, NOW, set())


def test_scores_of_the_last_minute_and_frames_a_second(fleet):
    for tenth in range(100):
        fleet.take(PATH, score(50.0 if tenth == 35 else 20.0), NOW + tenth / 10)
    view = fleet.view(PATH, NOW + 9.95)
    assert view["fps"] == pytest.approx(10, abs=0.3)
    assert [value for _, value in view["spark"]][-10:] == [20, 20, 20, 50, 20, 20, 20, 20, 20, 20]
    assert view["spark"][0] == [int(NOW + 9 - 59) * 1000, None]
    assert fleet.view(PATH, NOW + 30)["fps"] == 0.0
    assert len(fleet.recent_scores(PATH)[0]) == 100


def test_rows_to_keep_are_the_highest_of_their_time(fleet):
    start = NOW // ROW_SECONDS * ROW_SECONDS
    for second in range(ROW_SECONDS + 5):
        fleet.take(PATH, score(float(second)), start + second)
    [row] = fleet.take_rows()
    assert (row.time, row.score) == (start, ROW_SECONDS - 1)
    assert fleet.take_rows() == []
    [row] = fleet.take_rows(all_=True)
    assert (row.time, row.score) == (start + ROW_SECONDS, ROW_SECONDS + 4)


def test_open_alerts_and_their_pictures(fleet):
    fleet.take(PATH, status(), NOW)
    record = merge(None, PATH, alert_message("a1"))
    fleet.take_alert(record, NOW, new=True)
    pictured = record.model_copy(update={"image": "01"})
    fleet.show_picture_of(pictured, NOW)
    view = fleet.view(PATH, NOW)
    assert [alert["id"] for alert in view["open_alerts"]] == ["a1"]
    assert view["picture"]["kind"] == "alert"
    fleet.take_snapshot(PATH, picture(), NOW + 1)
    assert fleet.view(PATH, NOW + 1)["picture"]["kind"] == "snapshot"
    fleet.take_alert(pictured.ended(), NOW + 2, new=False)
    assert fleet.view(PATH, NOW + 2)["open_alerts"] == []


def test_what_an_earlier_run_left_open(fleet):
    now = datetime.now(timezone.utc)
    fleet.take(PATH, status(), NOW)
    old = merge(None, PATH, alert_message("old", opened_at=now - timedelta(hours=2)))
    new = merge(None, PATH, alert_message("new", opened_at=now))
    for record in (old, new):
        fleet.take_alert(record, NOW, new=True)
    fleet.take(PATH, health_message(uptime_s=30), NOW)
    assert fleet.left_open(PATH) == []  # it may still close it itself
    fleet.take(PATH, health_message(uptime_s=3600), NOW)
    assert [record.id for record in fleet.left_open(PATH)] == ["old"]


def test_the_number_of_everything_is_bounded(monkeypatch):
    monkeypatch.setattr("station.dashboard.fleet._SNAPSHOT_BYTES", 3 * len(picture()))
    fleet = Fleet(most=5)
    for number in range(10):
        fleet.take(f"mill/3/s{number}", status(), NOW)
    assert len(fleet) == 5
    assert fleet.trouble.startswith("too-many-stations: ")
    assert not fleet.has_room_for("mill/3/s9")
    for number in range(5):
        fleet.take_snapshot(f"mill/3/s{number}", picture(), NOW + number)
    assert [number for number in range(5) if fleet.snapshot(f"mill/3/s{number}")] == [2, 3, 4]
    for number in range(10 * MAX_SHOWN):
        fleet.take_alert(merge(None, "mill/3/s0", alert_message(f"a{number}")), NOW, new=True)
    assert len(fleet.view("mill/3/s0", NOW)["open_alerts"]) == MAX_SHOWN
    fleet.take("mill/3/s0", status("degraded", *(["x" * 9000] * 100)), NOW)
    assert sum(map(len, fleet.view("mill/3/s0", NOW)["reasons"])) <= 10_000


def test_a_station_s_clock_is_known_from_what_it_says(fleet):
    assert fleet.clock_of(PATH, NOW) is None
    fleet.take(PATH, status(at=datetime(2024, 5, 1, tzinfo=timezone.utc)), NOW)
    assert fleet.clock_of(PATH, NOW + 60) == datetime(2024, 5, 1, 0, 1, tzinfo=timezone.utc)
