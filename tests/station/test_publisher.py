"""The publisher against real brokers: Mosquitto for MQTT 5, amqtt, which speaks 3.1.1 only, for the fall-back."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
import trustme
from pydantic import SecretStr
from structlog.testing import capture_logs

from station.connection import Connection
from station.messages import Alert, Rectangle, Score, Status
from station.outbox import Outbox
from station.publisher import SCORE_BACKLOG, Publisher
from station.settings import MqttSettings, OutboxSettings, SettingsError, TlsSettings
from tests.support.mosquitto import HOST, Mosquitto, Subscriber, free_port

PREFIX = "station/v1/s/l/n"
NOW = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
PASSWORD = "correct-horse"


def status(state: str) -> Status:
    return Status(state=state, session="abc")


def score(frame: int) -> Score:
    return Score(frame=frame, captured_at=NOW, score=1.5, threshold=2, anomalous=False, latency_ms={"total": 3.0})


def alert(event: str, number: int = 1) -> Alert:
    return Alert(
        event=event,
        id=f"a{number}",
        dedupe_key=f"a{number}/{event}",
        opened_at=NOW,
        first_frame=1,
        last_frame=2,
        score=3,
        peak_score=4,
        threshold=2,
        boxes=(Rectangle(x=1, y=2, w=3, h=4),),
        frame_width=100,
        frame_height=80,
    )


def make(port: int, **settings) -> Publisher:
    outbox = Outbox(None, OutboxSettings())
    return Publisher(MqttSettings(host=HOST, port=port, **settings), PREFIX, "test-station", "abc", outbox)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


def test_mqtt5_carries_every_kind_of_message_with_its_properties(broker: Mosquitto) -> None:
    with Subscriber(broker.port) as subscriber:
        publisher = make(broker.port)
        publisher.start()
        for message in (status("online"), score(1), alert("open")):
            publisher.publish(message)
        publisher.publish_image("a1", b"\xff\xd8jpeg")
        publisher.publish(alert("close"))
        assert publisher.drain(10)
        assert publisher.connection.protocol == "5"
        assert publisher.close(status("stopped"), 5) == 0
        subscriber.wait_for(lambda heard: len(heard) == 6)
        heard = {m.topic.removeprefix(PREFIX + "/"): m for m in reversed(subscriber.heard)}
        assert set(heard) == {"status", "score", "alert", "alert/a1/image"}
        assert heard["alert/a1/image"].payload == b"\xff\xd8jpeg"
        assert heard["alert/a1/image"].properties.ContentType == "image/jpeg"
        assert heard["alert"].properties.ContentType == "application/json"
        assert 86000 < heard["alert"].properties.MessageExpiryInterval <= 86400
        assert ("schema", "station/v1/alert") in heard["alert"].properties.UserProperty
        assert (heard["score"].qos, heard["alert"].qos) == (0, 1)
        sent = [json.loads(m.payload) for m in subscriber.heard if m.topic.rpartition("/")[2] != "image"]
        assert sorted(message["seq"] for message in sent) == [1, 2, 3, 4, 5]
        assert sent[-1]["state"] == "stopped"
        assert [json.loads(payload)["event"] for payload in subscriber.on("/alert")] == ["open", "close"]
    with Subscriber(broker.port) as late:  # only the status is retained
        late.wait_for(lambda heard: heard)
        assert [(m.topic, json.loads(m.payload)["state"], m.retain) for m in late.heard] == [
            (f"{PREFIX}/status", "stopped", True)
        ]


def test_last_will_says_offline_when_the_station_vanishes(broker: Mosquitto) -> None:
    publisher = make(broker.port)
    publisher.start()
    publisher.publish(status("online"))
    assert publisher.drain(10)
    with Subscriber(broker.port) as subscriber:
        publisher.connection.client.socket().shutdown(socket.SHUT_RDWR)
        subscriber.wait_for(lambda _: any(json.loads(p)["state"] == "offline" for p in subscriber.on("status")))
        will = json.loads(subscriber.on("status")[-1])
        assert (will["schema"], will["seq"], will["session"]) == ("station/v1/status", 0, "abc")
        # It reconnects by itself, and then the broker must not stay with "offline".
        subscriber.wait_for(lambda _: json.loads(subscriber.on("status")[-1])["state"] == "online")
        publisher.close(status("stopped"), 5)


def test_alerts_wait_for_a_broker_that_comes_late_and_scores_make_room(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    publisher = make(broker.port)
    publisher.start()
    publisher.publish(status("online"))
    for number in range(50):
        publisher.publish(alert("open", number))
    for frame in range(SCORE_BACKLOG + 7):
        publisher.publish(score(frame))
    assert not publisher.drain(0.1)
    assert publisher.scores_dropped == 7
    with broker, Subscriber(broker.port) as subscriber:
        assert publisher.drain(20)
        subscriber.wait_for(lambda heard: len(heard) >= 51 + SCORE_BACKLOG)
        assert [json.loads(p)["id"] for p in subscriber.on("/alert")] == [f"a{n}" for n in range(50)]
        assert json.loads(subscriber.on("/score")[0])["frame"] == 7  # the oldest went
        assert publisher.close(status("stopped"), 5) == 0


def test_an_alert_in_flight_survives_the_death_of_the_broker(broker: Mosquitto) -> None:
    publisher = make(broker.port, keepalive=2)
    publisher.start()
    publisher.publish(status("online"))
    assert publisher.drain(10)
    broker.pause()
    publisher.publish(alert("open"))
    assert not publisher.drain(0.5)  # sent, not acknowledged
    broker.kill()
    broker.start()
    with Subscriber(broker.port) as subscriber:
        assert publisher.drain(20)
        subscriber.wait_for(lambda _: subscriber.on("/alert"))
        assert publisher.close(status("stopped"), 5) == 0


def test_closing_in_time_without_a_broker_tells_what_was_lost() -> None:
    publisher = make(free_port())
    publisher.start()
    publisher.publish(alert("open"))
    publisher.publish_image("a1", b"jpeg")
    assert publisher.close(status("stopped"), 0.5) == 2


def test_falls_back_to_3_1_1_on_a_broker_that_refuses_mqtt_5() -> None:
    from station.demo.broker import Broker

    with Broker() as broker, Subscriber(broker.port, protocol=mqtt.MQTTv311) as subscriber:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish(status("online"))
        publisher.publish(alert("open"))
        assert publisher.drain(15)
        assert publisher.connection.protocol == "3.1.1"
        assert publisher.close(status("stopped"), 5) == 0
        subscriber.wait_for(lambda heard: len(heard) == 3)
        assert [json.loads(p)["state"] for p in subscriber.on("/status")] == ["online", "stopped"]


def test_falls_back_on_a_broker_that_hangs_up_on_mqtt_5_without_a_word() -> None:
    """The server is a stand-in: it reads the protocol level, hangs up on 5 and accepts 4 (3.1.1)."""
    server = socket.create_server((HOST, 0))
    levels = []

    def serve() -> None:
        while len(levels) < 3:
            client, _ = server.accept()
            with client:
                levels.append(client.recv(1024)[8])  # fixed header 2, "MQTT" with its length 6
                if levels[-1] == 4:
                    client.sendall(b"\x20\x02\x00\x00")
                    client.recv(1024)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    connection = Connection(MqttSettings(host=HOST, port=server.getsockname()[1]), "c")
    connection.start()
    assert connection.wait(20)
    assert (levels, connection.protocol) == ([5, 5, 4], "3.1.1")
    connection.stop(1)
    thread.join(5)
    server.close()


def test_wrong_password_is_told_and_is_no_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "wrong-battery-staple"
    with Mosquitto(tmp_path, users={"station": PASSWORD}) as broker, capture_logs() as logs:
        connection = Connection(
            MqttSettings(host=HOST, port=broker.port, username="station", password=SecretStr(wrong)), "c"
        )
        connection.start()
        assert not connection.wait(2)
        assert connection.problem is not None
        assert "Not authorized" in connection.problem
        assert "mqtt.username" in connection.problem
        assert not connection.connected
        connection.stop(1)
        told = [entry for entry in logs if connection.where in entry.get("problem", "")]
        assert len(told) == 1, "the same reason is told once, however often it is tried"
        for secret_free in (repr(connection), str(vars(connection)), str(logs), caplog.text, connection.problem):
            assert wrong not in secret_free


def test_the_right_password_never_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Mosquitto(tmp_path, users={"station": PASSWORD}) as broker, capture_logs() as logs:
        settings = MqttSettings(host=HOST, port=broker.port, username="station", password=SecretStr(PASSWORD))
        connection = Connection(settings, "c")
        connection.start()
        assert connection.wait(10)
        connection.stop(1)
        for text in (repr(settings), str(settings), settings.model_dump_json(), str(logs), caplog.text):
            assert PASSWORD not in text


def test_an_access_list_that_refuses_a_topic_is_told_and_does_not_block(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic readwrite {PREFIX}/alert\ntopic read #\n")
    with Mosquitto(tmp_path, options=[f"acl_file {acl}"]) as broker, capture_logs() as logs:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish(status("online"))
        publisher.publish(alert("open"))
        assert publisher.drain(10)
        refused = [entry for entry in logs if entry["log_level"] == "error"]
        assert [(entry["topic"], entry["reason"]) for entry in refused] == [(f"{PREFIX}/status", "Not authorized")]
        publisher.close(status("stopped"), 5)


def test_a_picture_above_the_brokers_limit_is_left_out(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, options=["max_packet_size 20000"])
    with broker, Subscriber(broker.port) as subscriber, capture_logs() as logs:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish_image("a1", bytes(30000))
        publisher.publish(alert("close"))
        assert publisher.drain(10)
        subscriber.wait_for(lambda _: subscriber.on("/alert"))
        assert not subscriber.on("/image")
        assert [entry["limit"] for entry in logs if entry["log_level"] == "error"] == [20000]
        publisher.close(status("stopped"), 5)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    ca, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    server, client = ca.issue_cert("localhost"), ca.issue_cert("station@plant")
    for name, cert in (("server", server), ("client", client)):
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return ca, folder


@pytest.fixture
def tls_broker(tmp_path: Path, authority: tuple[trustme.CA, Path]) -> Iterator[Mosquitto]:
    _, folder = authority
    options = [
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/server.pem",
        f"keyfile {folder}/server.key",
        "require_certificate true",
    ]
    with Mosquitto(tmp_path, options) as broker:
        yield broker


def connect(port: int, host: str = "localhost", **tls) -> Connection:
    connection = Connection(MqttSettings(host=host, port=port, tls=TlsSettings(**tls)), "c")
    connection.start()
    end = time.monotonic() + 10
    while not connection.wait(0.05) and connection.problem is None:
        assert time.monotonic() < end
    connection.stop(1)
    return connection


def test_tls_with_a_client_certificate(tls_broker: Mosquitto, authority: tuple[trustme.CA, Path]) -> None:
    _, folder = authority
    pair = {"cert_file": folder / "client.pem", "key_file": folder / "client.key"}
    assert connect(tls_broker.port, ca_file=folder / "ca.pem", **pair).problem is None
    stranger = connect(tls_broker.port, **pair).problem
    assert stranger is not None
    assert "not trusted" in stranger
    assert "mqtt.tls.ca_file" in stranger
    wrong_name = connect(tls_broker.port, host=HOST, ca_file=folder / "ca.pem", **pair).problem
    assert wrong_name is not None
    assert "not trusted" in wrong_name
    assert connect(tls_broker.port, ca_file=folder / "ca.pem").problem is not None  # no client certificate


def test_tls_on_a_plain_port_is_told(broker: Mosquitto, authority: tuple[trustme.CA, Path]) -> None:
    problem = connect(broker.port, ca_file=authority[1] / "ca.pem").problem
    assert problem is not None
    assert "TLS" in problem


def test_unusable_tls_files_are_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mqtt\.tls\.ca_file = .*missing\.pem"):
        Connection(MqttSettings(tls=TlsSettings(ca_file=tmp_path / "missing.pem")), "c")
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match=r"mqtt\.tls\.cert_file = .*no\.pem"):
        Connection(MqttSettings(tls=TlsSettings(cert_file=tmp_path / "no.pem", key_file=tmp_path / "no.pem")), "c")


def test_two_stations_with_one_client_id_are_told(broker: Mosquitto) -> None:
    with capture_logs() as logs:
        first = Connection(MqttSettings(host=HOST, port=broker.port), "same")
        first.start()
        assert first.wait(10)
        lost = threading.Event()
        first.on_disconnected = lost.set
        second = Connection(MqttSettings(host=HOST, port=broker.port), "same")
        second.start()
        assert lost.wait(10)
        first.stop(1)
        second.stop(1)
    assert any("does another client use the id 'same'?" in str(entry.get("problem")) for entry in logs)
