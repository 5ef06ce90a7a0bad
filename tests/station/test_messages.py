import json
from datetime import datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from station.messages import MESSAGES, Alert, Rectangle, Score, Status, alert_image_topic

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)


def make_score(**changes: object) -> Score:
    fields = {"frame": 1, "captured_at": NOON, "score": 1.0, "threshold": 2.0, "anomalous": False, "latency_ms": {}}
    return Score.model_validate(fields | changes)


def test_payload_is_json_with_schema_seq_and_utc_times() -> None:
    east = datetime(2024, 5, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    sent = json.loads(make_score(captured_at=east, at=east, seq=7).payload())
    assert sent["schema"] == "station/v1/score"
    assert sent["seq"] == 7
    assert sent["at"] == sent["captured_at"] == "2024-05-01T12:00:00Z"


def test_a_message_is_stamped_when_it_is_made() -> None:
    before = datetime.now(timezone.utc)
    assert before <= Status(state="online", session="s").at <= datetime.now(timezone.utc)


def test_payload_reads_back_as_the_same_message() -> None:
    alert = Alert(
        event="open",
        id="a",
        dedupe_key="a/open",
        opened_at=NOON,
        first_frame=1,
        last_frame=1,
        score=3,
        peak_score=3,
        threshold=2,
        boxes=(Rectangle(x=0, y=1, w=2, h=3),),
        frame_width=10,
        frame_height=10,
    )
    for message in (alert, make_score(), Status(state="degraded", reasons=("camera: no frame",), session="s")):
        assert type(message).model_validate_json(message.payload()) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"score": float("nan")},
        {"score": float("inf")},
        {"captured_at": "2024-05-01T12:00:00"},
        {"extra": 1},
        {"seq": -1},
    ],
)
def test_what_must_not_go_over_the_wire(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_score(**changes)


def test_every_kind_has_its_topic_and_way_of_sending() -> None:
    assert {kind.topic: (kind.qos, kind.retain) for kind in MESSAGES} == {
        "status": (1, True),
        "info": (1, True),
        "score": (0, False),
        "alert": (1, False),
        "health": (0, False),
        "reply": (1, False),
        "feedback": (1, False),
    }
    assert Alert.expiry is not None
    assert alert_image_topic("20240501-1") == "alert/20240501-1/image"
    for kind in MESSAGES:
        assert kind.model_json_schema(by_alias=True)["properties"]["schema"]["const"] == f"station/v1/{kind.topic}"
