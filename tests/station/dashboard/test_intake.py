"""What anybody may publish: understood, or refused with a reason; never anything else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.dashboard.intake import (
    MAX_JSON,
    MAX_PICTURE,
    Gone,
    Heard,
    NotOursError,
    Picture,
    Stations,
    is_id,
    read,
)
from station.messages import Alert, Score, Status
from tests.support.dashboard import alert_message, frame, health_message, info_message, picture

PREFIX = "station/v1"
TOP = f"{PREFIX}/mill/3/left"
MESSAGES = [Status(state="online", session="s"), info_message(), health_message(), alert_message("a1")]


@pytest.mark.parametrize("message", MESSAGES, ids=[message.topic for message in MESSAGES])
def test_messages_are_read(message):
    assert read(PREFIX, f"{TOP}/{message.topic}", message.payload()) == Heard("mill/3/left", message)


def test_pictures_are_told_by_what_they_are():
    assert read(PREFIX, f"{TOP}/alert/a1/image", picture()).what == Picture("image", "a1", picture())
    assert read(PREFIX, f"{TOP}/alert/a1/frame", frame()).what == Picture("frame", "a1", frame())
    assert read(PREFIX, f"{TOP}/snapshot/s1/image", picture()).what == Picture("snapshot", "s1", picture())
    for topic, data in (
        ("alert/a1/image", frame()),
        ("alert/a1/frame", picture()),
        ("alert/a1/image", b"<script>alert(1)</script>"),
        ("alert/a1/image", picture() + bytes(MAX_PICTURE)),
        ("alert/a1/image", b""),
    ):
        with pytest.raises(NotOursError):
            read(PREFIX, f"{TOP}/{topic}", data)


def test_a_cleared_status_takes_a_station_out_of_service():
    assert read(PREFIX, f"{TOP}/status", b"").what == Gone()
    with pytest.raises(NotOursError):
        read(PREFIX, f"{TOP}/info", b"")


@pytest.mark.parametrize(
    "topic",
    [
        "other/v1/mill/3/left/status",
        "station/v1/mill/3/status",
        "station/v1/mill/../left/status",
        "station/v1/mill//left/status",
        "station/v1/mill/3/<b>/status",
        "station/v1/mill/3/left/cmd/pause",
        "station/v1/mill/3/left/alert/.hidden/image",
        "station/v1/mill/3/left/" + "x" * 65,
        "station/v1/mill/3/left/status/more",
    ],
)
def test_other_topics_are_none_of_ours(topic):
    with pytest.raises(NotOursError):
        read(PREFIX, topic, Status(state="online", session="s").payload())


def test_a_newer_station_may_say_more():
    payload = json.loads(alert_message("a1").payload())
    payload["shape"] = {"kind": "scratch"}
    payload["boxes"][0]["angle"] = 3
    heard = read(PREFIX, f"{TOP}/alert", json.dumps(payload).encode()).what
    assert isinstance(heard, Alert)
    assert (heard.id, heard.boxes[0].w) == ("a1", 16)
    payload["schema"] = "station/v2/alert"
    with pytest.raises(NotOursError):
        read(PREFIX, f"{TOP}/alert", json.dumps(payload).encode())


def test_an_alert_whose_id_is_no_name_is_refused():
    with pytest.raises(NotOursError, match="id"):
        read(PREFIX, f"{TOP}/alert", alert_message("../../etc").payload())


def test_more_json_than_any_message_has_is_not_parsed():
    with pytest.raises(NotOursError, match="at most"):
        read(PREFIX, f"{TOP}/status", b" " * (MAX_JSON + 1))


_topics = st.lists(
    st.sampled_from(
        ["mill", "3", "left", "status", "info", "score", "alert", "health", "feedback", "reply", "a1", "image"]
    )
    | st.text(max_size=8),
    max_size=8,
).map(lambda levels: f"{PREFIX}/" + "/".join(levels))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)


@given(_topics, st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
def test_anything_at_all_is_read_or_refused(topic, payload):
    try:
        heard = read(PREFIX, topic, payload)
    except NotOursError:
        return
    assert all(map(is_id, heard.station.split("/")))


@given(st.sampled_from(MESSAGES), st.data())
def test_messages_with_one_value_changed_are_read_or_refused(message, data):
    payload = json.loads(message.payload())
    payload[data.draw(st.sampled_from(sorted(payload)))] = data.draw(_json)
    try:
        heard = read(PREFIX, f"{TOP}/{message.topic}", json.dumps(payload).encode())
    except NotOursError:
        return
    assert type(heard.what) is type(message)


def test_which_stations_are_shown():
    stations = Stations(["mill/+/left", "press/1/top"])
    assert "mill/3/left" in stations
    assert "press/1/top" in stations
    assert "mill/3/right" not in stations
    assert Score.topic not in stations  # not three levels
