import re
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from station.health import metrics
from station.health.metrics import Figures, MetricsServer
from station.messages import CameraHealth, DriftHealth
from station.settings import MetricsSettings
from tests.support.mosquitto import free_port

HOST = "127.0.0.1"


def figures(**changes):
    fields = {
        "state": "degraded",
        "inspected": 120,
        "alerts": 3,
        "score": 20.0,
        "threshold": 40.0,
        "camera": CameraHealth(
            connected=True,
            fault="camera-frozen: the same picture for 12 s",
            frames=130,
            reconnects=2,
            fps=25.0,
            brightness=117.0,
            sharpness=3.5,
            noise=None,
        ),
        "drift": DriftHealth(state="drift", direction="lower", effect=0.2, p_value=1e-9, frames=500),
        "queued": {"frames": 1, "scores": 7, "outbox": 4, "outbox_bytes": 4096},
        "dropped": {"frames": 9, "scores": 5, "alerts": 0, "images": 1},
        "broker_connected": False,
        "temperatures_c": {"CPU-therm": 48.5},
    }
    return Figures(**(fields | changes))


@pytest.fixture
def start():
    servers = []

    def make(now=figures, host=HOST, port=None):
        server = MetricsServer(MetricsSettings(host=host, port=port or free_port()), now, {"version": "1.2.3"})
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()


def fetch(server, host=HOST):
    with urllib.request.urlopen(f"http://{host}:{server.port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def samples(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_prometheus_reads(start):
    server = start()
    server.observe(20.0, 40.0, {"infer": 12.0, "total": 30.0})
    server.observe(80.0, 40.0, {"infer": 14.0, "total": 40.0})
    found = samples(fetch(server))
    expected = {
        ("station_build_info", "1.2.3"): 1,
        ("station_state", "online"): 0,
        ("station_state", "degraded"): 1,
        ("station_frames_read_total",): 130,
        ("station_frames_inspected_total",): 120,
        ("station_alerts_opened_total",): 3,
        ("station_score",): 20,
        ("station_threshold",): 40,
        ("station_queued", "frames"): 1,
        ("station_queued", "scores"): 7,
        ("station_queued", "outbox"): 4,
        ("station_outbox_bytes",): 4096,
        ("station_dropped_total", "frames"): 9,
        ("station_dropped_total", "images"): 1,
        ("station_camera_connected",): 1,
        ("station_camera_fault", "camera-frozen"): 1,
        ("station_camera_reconnects_total",): 2,
        ("station_camera_brightness",): 117,
        ("station_drift", "lower"): 1,
        ("station_drift", "higher"): 0,
        ("station_drift_effect",): 0.2,
        ("station_broker_connected",): 0,
        ("station_temperature_celsius", "CPU-therm"): 48.5,
        ("station_score_threshold_ratio_count",): 2,
        ("station_score_threshold_ratio_sum",): 2.5,
        ("station_stage_duration_seconds_count", "infer"): 2,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["station_stage_duration_seconds_sum", "infer"] == pytest.approx(0.026)
    assert found["process_resident_memory_bytes",] > 2**20
    assert ("station_camera_noise",) not in found, "not measured: no figure, and above all no 0"


def test_names_follow_the_conventions(start):
    text = fetch(start())
    for family in text_string_to_metric_families(text):
        assert re.fullmatch(r"(station|process)_[a-z][a-z0-9_]*", family.name)
        assert family.documentation
        assert not re.search(r"_(ms|mib|percent|minutes)(_|$)", family.name), "base units only"
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_before_the_first_frame(start):
    unknown = DriftHealth(state="unknown", direction=None, effect=None, p_value=None, frames=0)
    found = samples(fetch(start(lambda: figures(state=None, score=None, drift=unknown, temperatures_c={}))))
    assert found["station_state", "online"] == 0
    assert ("station_score",) not in found
    assert ("station_drift_effect",) not in found


def test_figures_are_asked_for_anew_every_time(start):
    counts = iter(range(100))
    server = start(lambda: figures(inspected=next(counts)))
    read = [samples(fetch(server))["station_frames_inspected_total",] for _ in range(3)]
    assert read == sorted(set(read))


def test_no_port_no_server():
    server = MetricsServer(MetricsSettings(), figures, {})
    server.start()
    server.observe(1.0, 2.0, {"infer": 1.0})
    assert server.port is None
    assert server.trouble is None
    server.stop()


def test_a_taken_port_is_told_and_no_error(start):
    first = start()
    second = start(port=first.port)
    assert second.trouble == f"metrics-port: address already in use ({HOST} port {first.port}): no metrics are served"
    assert second.port is None
    second.observe(1.0, 2.0, {})
    assert fetch(first)


def test_an_address_that_is_not_ours_is_told(start):
    server = start(host="192.0.2.1")  # TEST-NET-1
    assert server.trouble.startswith("metrics-port: ")


def test_ipv6(start):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    assert fetch(start(host="::1"), "[::1]")


def test_clients_that_never_speak_or_hang_up_do_no_harm(start, monkeypatch):
    monkeypatch.setattr(metrics._Handler, "timeout", 0.2)
    server = start()
    silent = [socket.create_connection((HOST, server.port)) for _ in range(20)]
    with socket.create_connection((HOST, server.port)) as rude:
        rude.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset instead of a good-bye
    assert fetch(server)
    for client in silent:
        client.settimeout(30)
        assert client.recv(1) == b"", "hung up on"
        client.close()


def test_figures_that_fail_cost_one_answer(start, capfd):
    broken = True

    def sometimes():
        if broken:
            raise RuntimeError("no figures")
        return figures()

    server = start(sometimes)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        fetch(server)
    broken = False
    assert fetch(server)


def test_stopped_means_closed(start):
    server = start()
    port = server.port
    server.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((HOST, port), timeout=5)
    assert start(port=port).trouble is None
