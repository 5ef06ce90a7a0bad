"""What the network thread takes: whatever it is, it goes on, and nothing grows without bound."""

import sqlite3
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.dashboard.archive import Archive
from station.dashboard.feed import Feed
from station.dashboard.fleet import Fleet
from station.messages import Status
from station.settings import DashboardSection, DashboardSettings
from tests.support.dashboard import alert_message, frame, health_message, picture

TOP = "station/v1/mill/3/left"


def heard(topic: str, payload: bytes, *, retain: bool = False) -> mqtt.MQTTMessage:
    message = mqtt.MQTTMessage(topic=topic.encode(errors="surrogatepass"))
    message.payload = payload
    message.retain = retain
    return message


class Ears:
    """A feed that is not connected, and what it heard."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(most=5)
        self.archive = Archive(folder, 16, 90)
        self.feed = Feed(DashboardSettings(dashboard=DashboardSection(state=folder)), self.fleet, self.archive)
        self.told: list[str] = []
        self.feed.on_alert = lambda record: self.told.append(record.id)

    def hear(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.feed._receive(heard(topic, payload, retain=retain))


@pytest.fixture(scope="module")
def ears(tmp_path_factory):
    ears = Ears(tmp_path_factory.mktemp("feed"))
    yield ears
    ears.archive.close()


_levels = st.sampled_from(["mill", "3", "left", "..", "+", "#", "", "status", "alert", "a1", "image", "frame", "cmd"])
_topic = st.lists(_levels | st.text(max_size=5), max_size=8).map(lambda levels: "station/v1/" + "/".join(levels))
_station = st.integers(0, 20).map(lambda number: f"station/v1/mill/3/s{number}")
_true = st.sampled_from(
    [
        ("status", Status(state="online", session="s", seq=1).payload()),
        ("status", b""),
        ("health", health_message().payload()),
        ("alert", alert_message("a1").payload()),
        ("alert", alert_message("a1", "close").payload()),
        ("alert/a1/image", picture()),
        ("alert/a1/frame", frame()),
        ("snapshot/s1/image", picture()),
    ]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(_topic, st.binary(max_size=100))
    | st.builds(lambda at, true: (f"{at}/{true[0]}", true[1]), _station, _true)
)
def test_whatever_comes_it_goes_on(ears, message):
    ears.hear(*message)
    assert len(ears.fleet) <= 5
    assert len(ears.feed.rejected) <= 100
    assert not any(why.startswith("internal") for why in ears.feed.rejected), ears.feed.rejected


def test_what_the_disk_does_not_take_is_shown_and_written_later(tmp_path, monkeypatch):
    ears = Ears(tmp_path)
    full = sqlite3.OperationalError("database or disk is full")
    put_alert = Archive.put_alert

    def refuse(*_):
        raise full

    monkeypatch.setattr(Archive, "put_alert", refuse)
    ears.hear(f"{TOP}/status", Status(state="online", session="s", seq=1).payload())
    ears.hear(f"{TOP}/alert", alert_message("a1").payload())
    ears.hear(f"{TOP}/alert/a1/image", picture())
    ears.hear(f"{TOP}/alert", alert_message("a1", "close").payload())
    assert ears.told == ["a1", "a1"]
    assert "disk" in ears.feed._disk
    assert ears.archive.alert("mill/3/left", "a1") is None
    ears.feed.retry()
    assert ears.archive.alert("mill/3/left", "a1") is None
    monkeypatch.setattr(Archive, "put_alert", put_alert)
    ears.feed.retry()
    record = ears.archive.alert("mill/3/left", "a1")
    assert (record.state, record.image is not None) == ("closed", True)
    assert ears.feed._disk is None
    ears.archive.close()


def test_the_alerts_of_a_station_taken_out_of_service_are_closed(tmp_path):
    ears = Ears(tmp_path)
    ears.hear(f"{TOP}/status", Status(state="online", session="s", seq=1).payload())
    ears.hear(f"{TOP}/alert", alert_message("a1").payload())
    ears.hear(f"{TOP}/status", b"")
    assert ears.archive.open_alerts() == []
    assert ears.archive.stations() == []
    assert len(ears.fleet) == 0


def test_an_alert_that_a_killed_run_never_closed(tmp_path):
    ears = Ears(tmp_path)
    ears.hear(f"{TOP}/status", Status(state="online", session="s", seq=1).payload())
    ears.hear(f"{TOP}/alert", alert_message("a1", opened_at="2024-01-01T00:00:00Z").payload())
    ears.hear(f"{TOP}/health", health_message(uptime_s=3600).payload())
    assert ears.archive.alert("mill/3/left", "a1").state == "closed"
    assert ears.fleet.view("mill/3/left", 0)["open_alerts"] == []
    ears.archive.close()
