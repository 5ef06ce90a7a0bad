"""The publisher against real brokers: Mosquitto for MQTT 5, amqtt, which speaks 3.1.1 only, for the fall-back."""

import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
import trustme
from paho.mqtt.properties import Properties
from pydantic import SecretStr
from structlog.testing import capture_logs

import station.publisher
from station.connection import Connection
from station.messages import Alert, CameraHealth, DriftHealth, Health, Rectangle, Reply, Score, Status
from station.outbox import Outbox
from station.outbox_store import Parcel
from station.publisher import SCORE_BACKLOG, Publisher
from station.settings import MqttSettings, OutboxSettings, SettingsError, TlsSettings
from tests.support.mosquitto import HOST, Mosquitto, Subscriber, free_port
from tests.support.proxy import Proxy

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


_outboxes: list[Outbox] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _outboxes:
        _outboxes.pop().close()


def make(port: int, outbox: Outbox | None = None, **settings) -> Publisher:
    if outbox is None:
        outbox = Outbox(None, OutboxSettings())
        _outboxes.append(outbox)
    return Publisher(MqttSettings(host=HOST, port=port, **settings), PREFIX, "test-station", "abc", outbox)


def test_mqtt5_carries_every_kind_of_message_with_its_properties(broker: Mosquitto) -> None:
    with Subscriber(broker.port) as subscriber:
        publisher = make(broker.port)
        publisher.start()
        for message in (status("online"), score(1)):
            publisher.publish(message)
        publisher.publish_alert(alert("open"), b"\xff\xd8jpeg")
        publisher.publish_alert(alert("close"), png=b"\x89PNG")
        assert publisher.drain(10)
        assert publisher.connection.protocol == "5"
        assert publisher.close(status("stopped"), 5) == 0
        subscriber.wait_for(lambda heard: len(heard) == 7)
        heard = {m.topic.removeprefix(PREFIX + "/"): m for m in reversed(subscriber.heard)}
        assert set(heard) == {"status", "score", "alert", "alert/a1/image", "alert/a1/frame"}
        assert heard["alert/a1/image"].payload == b"\xff\xd8jpeg"
        assert heard["alert/a1/image"].properties.ContentType == "image/jpeg"
        assert heard["alert/a1/frame"].payload == b"\x89PNG"
        assert heard["alert/a1/frame"].properties.ContentType == "image/png"
        assert heard["alert"].properties.ContentType == "application/json"
        assert 86000 < heard["alert"].properties.MessageExpiryInterval <= 86400
        assert ("schema", "station/v1/alert") in heard["alert"].properties.UserProperty
        assert (heard["score"].qos, heard["alert"].qos) == (0, 1)
        sent = [json.loads(m.payload) for m in subscriber.heard if m.topic.count("/") < 7]
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
        publisher.publish_alert(alert("open", number))
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
    publisher.publish_alert(alert("open"))
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
    publisher.publish_alert(alert("open"), b"jpeg")
    assert publisher.close(status("stopped"), 0.5) == 2


def test_falls_back_to_3_1_1_on_a_broker_that_refuses_mqtt_5() -> None:
    from station.demo.broker import Broker

    with Broker() as broker, Subscriber(broker.port, protocol=mqtt.MQTTv311) as subscriber:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish(status("online"))
        publisher.publish_alert(alert("open"))
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


def keys(subscriber: Subscriber, suffix: str) -> list[str]:
    """Dedupe keys, in the order of their first coming."""
    found = [dict(m.properties.UserProperty)["dedupe_key"] for m in subscriber.heard if m.topic.endswith(suffix)]
    return list(dict.fromkeys(found))


def test_alerts_and_pictures_carry_their_dedupe_key(broker: Mosquitto) -> None:
    with Subscriber(broker.port) as subscriber:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish_alert(alert("open"), b"one")
        publisher.publish_alert(alert("close"), b"two")
        assert publisher.drain(10)
        subscriber.wait_for(lambda heard: len(heard) == 4)
        assert keys(subscriber, "/alert") == ["a1/open", "a1/close"]
        assert [json.loads(payload)["dedupe_key"] for payload in subscriber.on("/alert")] == ["a1/open", "a1/close"]
        assert [key.rpartition("/")[0] for key in keys(subscriber, "/image")] == ["a1/image", "a1/image"]
        publisher.close(status("stopped"), 5)


def test_what_is_on_its_way_keeps_its_order_when_the_connection_breaks(broker: Mosquitto, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "state", OutboxSettings())
    with Proxy(broker.port) as proxy, Subscriber(broker.port) as subscriber:
        proxy.delay = 0.02
        publisher = make(proxy.port, outbox)
        publisher.start()
        for number in range(300):
            publisher.publish_alert(alert("open", number))
        for part in range(1, 4):
            subscriber.wait_for(lambda _, part=part: len(keys(subscriber, "/alert")) > 60 * part)
            proxy.cut()
        assert publisher.drain(60)
        subscriber.wait_for(lambda _: len(keys(subscriber, "/alert")) == 300)
        assert keys(subscriber, "/alert") == [f"a{number}/open" for number in range(300)]
        publisher.close(status("stopped"), 5)
    outbox.close()


def test_an_alert_that_a_killed_run_left_open_is_closed_once(broker: Mosquitto, tmp_path: Path) -> None:
    killed = Outbox(tmp_path, OutboxSettings())
    make(free_port(), killed).publish_alert(alert("open"))
    killed.close()
    with Subscriber(broker.port) as subscriber:
        for _ in range(2):
            outbox = Outbox(tmp_path, OutboxSettings())
            publisher = make(broker.port, outbox)
            publisher.close_left_open()
            publisher.start()
            publisher.publish(status("online"))
            assert publisher.drain(10)
            assert publisher.close(status("stopped"), 5) == 0
            outbox.close()
        subscriber.wait_for(lambda _: len(subscriber.on("/status")) == 4)
        heard = [Alert.model_validate_json(payload) for payload in subscriber.on("/alert")]
    assert [(one.event, one.id, one.dedupe_key) for one in heard] == [
        ("open", "a1", "a1/open"),
        ("close", "a1", "a1/close/2"),
    ]
    assert heard[1].at > heard[0].at


def test_an_alert_that_cannot_be_read_stays_open_and_is_forgotten(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, OutboxSettings())
    outbox.put(Parcel("t", b"{}", 1, (), key="k", alert="a1"))
    outbox.close()
    outbox = Outbox(tmp_path, OutboxSettings())
    with capture_logs() as logs:
        make(free_port(), outbox).close_left_open()
    assert [entry["id"] for entry in logs if entry["log_level"] == "error"] == ["a1"]
    assert not outbox.left_open()
    outbox.close()


def test_commands_are_heard_after_every_log_in(broker: Mosquitto) -> None:
    heard: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
    publisher = make(broker.port)
    publisher.on_command = heard.put
    publisher.start()
    for _ in range(2):
        broker.wait_for_subscription(f"{PREFIX}/cmd/+")
        with Subscriber(broker.port) as desk:
            desk._client.publish(f"{PREFIX}/cmd/pause/deeper", b"{}", qos=1)  # none of ours
            desk._client.publish(f"{PREFIX}/cmd/pause", b"{}", qos=1, retain=True)
            message = heard.get(timeout=20)
        assert (message.topic, message.retain) == (f"{PREFIX}/cmd/pause", True), "retained ones must be known as such"
        broker.kill()
        broker.forget_log()
        broker.start()
    publisher.close(status("stopped"), 5)


def test_replies_and_snapshots_go_where_they_are_wanted(broker: Mosquitto) -> None:
    with Subscriber(broker.port) as subscriber:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish_reply(Reply(verb="pause", ok=True), None, None)
        publisher.publish_reply(Reply(verb="pause", ok=True), "desk/7", b"\x00\x07")
        publisher.publish_volatile_image("snapshot/1/image", b"jpeg")
        assert publisher.drain(10)
        subscriber.wait_for(lambda heard: len(heard) == 3)
        assert [m.topic for m in subscriber.heard] == [f"{PREFIX}/reply/pause", "desk/7", f"{PREFIX}/snapshot/1/image"]
        assert subscriber.heard[1].properties.CorrelationData == b"\x00\x07"
        assert [json.loads(m.payload)["seq"] for m in subscriber.heard[:2]] == [1, 2]
        publisher.close(status("stopped"), 5)


def test_nothing_is_sent_before_the_log_in_has_been_taken_note_of(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    publisher = make(broker.port)
    take_note = publisher.connection.on_connected

    def take_note_late(properties: Properties | None) -> None:
        time.sleep(1)  # a busy machine may stop the network thread here
        take_note(properties)

    publisher.connection.on_connected = take_note_late
    publisher.start()
    publisher.publish(score(1))
    with broker, Subscriber(broker.port) as subscriber:
        assert publisher.drain(20)
        subscriber.wait_for(lambda heard: len(heard) == 1)
        assert publisher.dropped == {"scores": 0, "alerts": 0, "images": 0}
        publisher.close(status("stopped"), 5)


def test_of_health_only_the_last_waits(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    publisher = make(broker.port)
    publisher.start()
    for uptime in (1.0, 2.0, 3.0):
        publisher.publish(health(uptime))
    publisher.publish(score(1))
    publisher.publish_alert(alert("open"))
    assert publisher.queued["scores"] == 1
    assert publisher.queued["outbox"] == 1
    with broker, Subscriber(broker.port) as subscriber:
        assert publisher.drain(20)
        subscriber.wait_for(lambda heard: len(heard) == 3)
        assert [json.loads(payload)["uptime_s"] for payload in subscriber.on("/health")] == [3.0]
        assert publisher.queued == {"scores": 0, "outbox": 0, "outbox_bytes": 0}
        assert publisher.dropped == {"scores": 0, "alerts": 0, "images": 0}
        publisher.close(status("stopped"), 5)


def health(uptime: float) -> Health:
    drift = DriftHealth(state="unknown", direction=None, effect=None, p_value=None, frames=0)
    camera = CameraHealth(
        connected=True, fault=None, frames=1, reconnects=0, fps=None, brightness=None, sharpness=None, noise=None
    )
    return Health(
        session="abc",
        state="online",
        uptime_s=uptime,
        inspected=1,
        camera=camera,
        drift=drift,
        stages_ms={},
        queued={},
        dropped={},
        temperatures_c={},
        resident_bytes=1,
    )


def test_a_refused_alert_waits_until_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(station.publisher, "HOLD_SECONDS", 0.3)
    acl = tmp_path / "acl"
    acl.write_text(f"topic readwrite {PREFIX}/status\ntopic read #\n")
    with Mosquitto(tmp_path, options=[f"acl_file {acl}"]) as broker:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish_alert(alert("open"))
        publisher.publish(status("online"))  # is let through meanwhile
        assert not publisher.drain(1)
        assert publisher.refusal == f"broker-refuses: {PREFIX}/alert: Not authorized; check the broker's access list"
        assert (publisher.queued["outbox"], publisher.dropped["alerts"]) == (1, 0)
        broker.kill()
        acl.write_text("topic readwrite #\n")
        broker.start()
        with Subscriber(broker.port) as subscriber:
            assert publisher.drain(20)
            subscriber.wait_for(lambda _: subscriber.on("/alert"))
        assert publisher.refusal is None
        publisher.close(status("stopped"), 5)


def test_a_refused_picture_goes_and_is_counted(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic readwrite {PREFIX}/status\ntopic readwrite {PREFIX}/alert\n")
    with Mosquitto(tmp_path, options=[f"acl_file {acl}"]) as broker:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish_alert(alert("open"), b"jpeg")
        publisher.publish_alert(alert("close"))
        assert publisher.drain(10)
        assert publisher.refusal is not None
        assert f"{PREFIX}/alert/a1/image" in publisher.refusal
        assert publisher.dropped == {"scores": 0, "alerts": 0, "images": 1}
        publisher.close(status("stopped"), 5)


def test_a_password_file_that_cannot_be_read_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mqtt\.password_file = .*missing: cannot be read"):
        make(1, password_file=tmp_path / "missing")


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
        publisher.publish_alert(alert("open"))
        assert publisher.drain(10)
        refused = [entry for entry in logs if entry["log_level"] == "error"]
        assert [(entry["topic"], entry["reason"]) for entry in refused] == [(f"{PREFIX}/status", "Not authorized")]
        publisher.close(status("stopped"), 5)


def test_a_picture_above_the_brokers_limit_is_left_out(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, options=["max_packet_size 20000"])
    with broker, Subscriber(broker.port) as subscriber, capture_logs() as logs:
        publisher = make(broker.port)
        publisher.start()
        publisher.publish_alert(alert("close"), bytes(30000))
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
