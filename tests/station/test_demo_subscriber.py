"""The demo's subscriber against the demo's broker, with messages as the daemon sends them."""

import io
from datetime import datetime, timezone

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from rich.console import Console

from station.demo.broker import HOST, Broker
from station.demo.sample_line import SampleLine
from station.demo.subscriber import Subscriber
from station.demo.tally import Tally
from station.messages import Alert, Rectangle, Score, Status

TOPICS = "station/v1/demo/line/station"
NOW = datetime(2024, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def station():
    """A client that publishes as a station does; and its broker's port."""
    with Broker() as broker:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.connect(HOST, broker.port)
        client.loop_start()

        def publish(topic, payload, qos=1):
            client.publish(f"{TOPICS}/{topic}", payload, qos).wait_for_publish(5)

        yield broker.port, publish
        client.disconnect()
        client.loop_stop()


@pytest.fixture
def text():
    return io.StringIO()


def status(state):
    return Status(seq=1, at=NOW, state=state, session="s").model_dump_json(by_alias=True)


def score(frame):
    message = Score(
        seq=frame, at=NOW, frame=frame, captured_at=NOW, score=5.0, threshold=1.0, anomalous=True,
        latency_ms={"wait": 0.0, "prepare": 1.0, "infer": 2.0, "judge": 0.5, "total": 3.5},
    )  # fmt: skip
    return message.model_dump_json(by_alias=True)


def alert(event, id_, frame, box):
    message = Alert(
        seq=1, at=NOW, event=event, id=id_, dedupe_key=f"{id_}/{event}", opened_at=NOW, first_frame=frame,
        last_frame=frame, score=5.0, peak_score=6.0, threshold=1.0, frame_width=256, frame_height=256,
        boxes=(Rectangle(x=box[0], y=box[1], w=box[2], h=box[3]),),
    )  # fmt: skip
    return message.model_dump_json(by_alias=True)


def test_it_follows_a_station_to_its_end_and_sums_up(station, text, tmp_path):
    port, publish = station
    line = SampleLine(0, 60)
    planted = line.planted[0]
    frames = planted.frames(60)
    index = frames[len(frames) // 2]
    console = Console(file=text, width=100)
    with Subscriber(HOST, port, TOPICS, Tally(line), console, tmp_path) as subscriber:
        publish("status", status("online"))
        for i in (index, index + 1):
            publish("score", score(i))
        publish("alert", alert("open", "a", index + 1, planted.box(index)))
        jpeg = cv2.imencode(".jpg", np.full((300, 256, 3), 80, np.uint8))[1].tobytes()
        publish("alert/a/image", jpeg)
        publish("alert/a/frame", b"the frame without heat and boxes, which must not take the picture's place")
        publish("alert", alert("close", "a", index + 1, planted.box(index)))
        wrong = frames.stop + 1
        publish("alert", alert("open", "b", wrong, (0, 0, 9, 9)))
        publish("alert", alert("close", "b", wrong, (0, 0, 9, 9)))
        publish("status", status("stopped"))
        assert subscriber.follow(lambda: None) is True
        subscriber.summarize()
    said = text.getvalue()
    assert f"peak 6: {planted.kind}" in said
    assert "false alarm" in said
    assert "False alarms: 1 of 2 alerts" in said
    assert "takes 3.5 ms" in said
    rows = {cells[0]: cells[1:] for row in said.splitlines() if (cells := row.replace("│", " ").split())}
    assert rows["all"] == [str(len(line.planted)), "1", str(len(line.planted) - 1)]
    assert (tmp_path / "alert-a.jpg").read_bytes() == jpeg
    assert cv2.imread(str(tmp_path / "contact-sheet.jpg")) is not None


@pytest.mark.parametrize(("exit_code", "fine"), [(0, True), (1, False), (-9, False)])
def test_a_station_that_is_gone_without_a_word_is_judged_by_its_exit_code(station, text, tmp_path, exit_code, fine):
    port, publish = station
    with Subscriber(HOST, port, TOPICS, Tally(SampleLine(0, 30)), Console(file=text), tmp_path) as subscriber:
        publish("status", status("online"))
        publish("status", status("offline"))
        assert subscriber.follow(lambda: exit_code) is fine


def test_a_station_that_falls_silent_is_given_up(station, text, tmp_path, monkeypatch):
    monkeypatch.setattr("station.demo.subscriber._SILENCE", 0.5)
    port, _ = station
    with Subscriber(HOST, port, TOPICS, Tally(SampleLine(0, 30)), Console(file=text), tmp_path) as subscriber:
        assert subscriber.follow(lambda: None) is False
