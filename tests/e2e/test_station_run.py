"""The whole way: a real stream in, the real daemon, a real broker, and a client that listens as a plant's would.

Only the detector is a stand-in: the toy bundle, whose score rises with the deviation from flat grey.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from station.messages import Alert, Info, Score, Status
from tests.support.bundles import GREY, make_bundle
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, Mosquitto, Subscriber, free_port, need
from tests.support.station_process import REPOSITORY, StationProcess, station

pytestmark = pytest.mark.e2e

PREFIX = "station/v1/plant/line-1/cam-1"
DEFECT = (40, 24, 20, 8)  # x, y, width, height


def surface(*, defect: bool = False) -> np.ndarray:
    image = np.full((96, 128, 3), GREY, np.uint8)
    if defect:
        x, y, w, h = DEFECT
        image[y : y + h, x : x + w] = 20
    return image


class Line:
    """What passes under the camera."""

    def __init__(self) -> None:
        self.defective = False

    def picture(self, number: int) -> np.ndarray:
        """With a sensor's noise: a camera that sends the same picture again and again is frozen."""
        noise = np.random.default_rng(number).integers(-2, 3, (96, 128, 1))
        return np.clip(surface(defect=self.defective) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def camera(line: Line) -> Iterator[MjpegServer]:
    with MjpegServer(fps=25, picture=line.picture) as camera:
        yield camera


def write_config(folder: Path, url: str, port: int, more: str = "") -> Path:
    make_bundle(folder / "bundle")
    config = folder / "station.toml"
    config.write_text(
        f"""
        bundle = "bundle"
        [station]
        site = "plant"
        line = "line-1"
        name = "cam-1"
        [camera]
        url = "{url}"
        read_timeout = 1.0
        reconnect_max = 0.5
        [judge]
        threshold = 40
        [mqtt]
        host = "{HOST}"
        port = {port}
        {more}
        """
    )
    return config


def states(subscriber: Subscriber) -> list[str]:
    return [Status.model_validate_json(payload).state for payload in subscriber.on("/status")]


def events(subscriber: Subscriber) -> list[Alert]:
    return [Alert.model_validate_json(payload) for payload in subscriber.on("/alert")]


def test_from_start_to_stop_as_a_client_sees_it(
    tmp_path: Path, line: Line, camera: MjpegServer, broker: Mosquitto, subscriber: Subscriber
) -> None:
    mosquitto_sub = subprocess.Popen(
        [need("mosquitto_sub"), "-V", "5", "-h", HOST, "-p", str(broker.port), "-t", "station/v1/#", "-F", "%t %C %l"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with StationProcess(write_config(tmp_path, camera.url, broker.port), tmp_path / "log") as process:
        subscriber.wait_for(lambda _: len(subscriber.on("/score")) >= 5)
        subscriber.wait_for(lambda _: states(subscriber) == ["online"])
        assert [m.topic.removeprefix(f"{PREFIX}/") for m in subscriber.heard[:3]] == ["status", "info", "score"]
        info = Info.model_validate_json(subscriber.on("/info")[-1])
        assert (info.bundle_name, info.frame_width, info.frame_height, info.threshold) == ("toy", 128, 96, 40)
        assert not events(subscriber)

        line.defective = True
        subscriber.wait_for(lambda _: events(subscriber) and subscriber.on("/image"))
        line.defective = False
        subscriber.wait_for(lambda _: events(subscriber)[-1].event == "close")
        opened, closed = events(subscriber)[0], events(subscriber)[-1]
        assert (opened.event, closed.id) == ("open", opened.id)
        check_patches_and_frame(opened, closed, subscriber)
        assert opened.score > opened.threshold
        x, y, w, h = DEFECT
        [box] = opened.boxes
        assert box.x <= x
        assert box.y <= y
        assert box.x + box.w >= x + w
        assert box.y + box.h >= y + h
        topic = next(m.topic for m in subscriber.heard if m.topic.endswith("/image"))
        assert topic == opened.image_topic == f"{PREFIX}/alert/{opened.id}/image"
        picture = cv2.imdecode(np.frombuffer(subscriber.on("/image")[0], np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        scores = [Score.model_validate_json(payload) for payload in subscriber.on("/score")]
        assert {"wait", "prepare", "infer", "judge", "total"} == set(scores[0].latency_ms)
        hot = {score.frame for score in scores if score.anomalous}
        assert opened.first_frame in hot
        assert closed.last_frame in hot
        assert len(hot) < len(scores)

        line.defective = True  # SIGTERM with an open alert
        subscriber.wait_for(lambda _: events(subscriber)[-1].id != opened.id)
        process.signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
        subscriber.wait_for(lambda _: states(subscriber)[-1] == "stopped")
    assert events(subscriber)[-1].event == "close"
    assert {event.event for event in events(subscriber)} >= {"open", "close"}
    assert states(subscriber) == ["online", "stopped"]
    # seq counts every message of the session, so a subscriber sees what it missed: here nothing.
    numbers = [json.loads(m.payload)["seq"] for m in subscriber.heard if not m.topic.endswith(("/image", "/frame"))]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    mosquitto_sub.terminate()
    seen = [text.split() for text in mosquitto_sub.communicate(timeout=10)[0].splitlines()]
    assert {topic.removeprefix(f"{PREFIX}/") for topic, *_ in seen} >= {"status", "info", "score", "alert"}
    assert [f"{PREFIX}/alert/{opened.id}/image", "image/jpeg"] in [words[:2] for words in seen]
    assert [f"{PREFIX}/alert", "application/json"] in [words[:2] for words in seen]


def check_patches_and_frame(opened: Alert, closed: Alert, subscriber: Subscriber) -> None:
    """For whoever judges the alert later: the patches' scores, and the frame as the camera gave it."""
    assert [patch.score for patch in opened.patches] == sorted((p.score for p in opened.patches), reverse=True)
    assert (len(opened.patches), opened.patches[0].score) == (12, opened.peak_score)
    assert opened.peak_boxes == opened.boxes
    assert closed.peak_boxes, "where the picture shows it"
    assert opened.frame_topic is None
    assert closed.frame_topic == f"{PREFIX}/alert/{opened.id}/frame"
    subscriber.wait_for(lambda _: subscriber.on(f"{opened.id}/frame"))
    frame = cv2.imdecode(np.frombuffer(subscriber.on(f"{opened.id}/frame")[0], np.uint8), cv2.IMREAD_COLOR)
    assert frame is not None
    assert frame.shape == (96, 128, 3)


def test_offline_after_sigkill(tmp_path: Path, camera: MjpegServer, broker: Mosquitto, subscriber: Subscriber) -> None:
    with StationProcess(write_config(tmp_path, camera.url, broker.port), tmp_path / "log") as process:
        subscriber.wait_for(lambda _: states(subscriber) == ["online"])
        session = Status.model_validate_json(subscriber.on("/status")[0]).session
        process.signal(signal.SIGKILL)
        subscriber.wait_for(lambda _: states(subscriber) == ["online", "offline"])
        assert Status.model_validate_json(subscriber.on("/status")[-1]).session == session


def test_a_stalled_camera_degrades_and_recovers(
    tmp_path: Path, camera: MjpegServer, broker: Mosquitto, subscriber: Subscriber
) -> None:
    with StationProcess(write_config(tmp_path, camera.url, broker.port), tmp_path / "log") as process:
        subscriber.wait_for(lambda _: states(subscriber) == ["online"])
        camera.stall()
        subscriber.wait_for(lambda _: states(subscriber)[-1] == "degraded")
        [reason] = Status.model_validate_json(subscriber.on("/status")[-1]).reasons
        assert reason.startswith("camera-stalled: ")
        process.signal(signal.SIGTERM)  # also while the camera hangs
        assert process.wait(timeout=5) == 0
        subscriber.wait_for(lambda _: states(subscriber)[-1] == "stopped")
    with StationProcess(tmp_path / "station.toml", tmp_path / "log2") as process:
        subscriber.wait_for(lambda _: states(subscriber)[-1] == "degraded")
        camera.resume()
        subscriber.wait_for(lambda _: states(subscriber)[-1] == "online")
        process.signal(signal.SIGINT)
        assert process.wait(timeout=5) == 0
    assert not events(subscriber), "a camera fault is no defect"


def test_inspects_without_a_broker_and_delivers_when_it_comes(tmp_path: Path, line: Line, camera: MjpegServer) -> None:
    broker = Mosquitto(tmp_path)
    line.defective = True
    config = write_config(tmp_path, camera.url, broker.port, '[log]\nformat = "json"')
    with StationProcess(config, tmp_path / "log") as process:
        wait_for_log(process, '"change": "open"', '"event": "no connection to the broker"')
        with broker, Subscriber(broker.port) as subscriber:
            subscriber.wait_for(lambda _: subscriber.on("/image"), timeout=40)
            assert events(subscriber)[0].event == "open"
            broker.pause()  # and SIGTERM while the broker hangs
            process.signal(signal.SIGTERM)
            assert process.wait(timeout=5) == 0
            broker.kill()


def wait_for_log(process: StationProcess, *words: str) -> None:
    deadline = time.monotonic() + 30
    while not all(word in process.log for word in words):
        if time.monotonic() > deadline:
            raise AssertionError(f"not in the log: {words}")
        time.sleep(0.05)


def test_stops_in_time_where_the_broker_cannot_be_reached(tmp_path: Path, camera: MjpegServer) -> None:
    """A listening socket that is never accepted answers nothing, as a dead host."""
    with socket.create_server((HOST, 0), backlog=1) as silent:
        config = write_config(tmp_path, camera.url, silent.getsockname()[1], '[log]\nformat = "json"')
        with StationProcess(config, tmp_path / "log") as process:
            wait_for_log(process, '"state": "online"')
            process.signal(signal.SIGTERM)
            assert process.wait(timeout=5) == 0


def test_replay_of_a_folder_ends_by_itself_with_all_delivered(
    tmp_path: Path, broker: Mosquitto, subscriber: Subscriber
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(12):
        assert cv2.imwrite(str(frames / f"{number:02}.png"), surface(defect=number in {4, 5}))
    config = write_config(tmp_path, "folder:frames", broker.port)
    done = station("run", "--config", config)
    assert done.returncode == 0, done.stderr
    subscriber.wait_for(lambda _: states(subscriber) == ["online", "stopped"])
    scores = [Score.model_validate_json(payload) for payload in subscriber.on("/score")]
    assert [score.name for score in scores] == [f"{number:02}.png" for number in range(12)]
    assert [score.frame for score in scores if score.anomalous] == [5, 6]
    alerts = events(subscriber)
    assert (alerts[0].event, alerts[0].name) == ("open", "04.png")
    assert alerts[-1].event == "close"


def test_watch_prints_what_a_station_says(tmp_path: Path, broker: Mosquitto) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(6):
        assert cv2.imwrite(str(frames / f"{number}.png"), surface(defect=number == 2))
    watch = subprocess.Popen(
        [sys.executable, "-m", "station", "watch", "--host", HOST, "--port", str(broker.port)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        assert "listening to station/v1/#" in watch.stdout.readline()
        broker.wait_for_subscription("station/v1/#")
        assert station("run", "--config", write_config(tmp_path, "folder:frames", broker.port)).returncode == 0
        lines: list[str] = []
        while not lines or not lines[-1].endswith("stopped\n"):
            lines.append(watch.stdout.readline())
        watch.send_signal(signal.SIGINT)
        rest, _ = watch.communicate(timeout=10)
    finally:
        watch.kill()
    text = "".join(lines) + rest
    assert watch.returncode == 0
    for words in (
        "plant/line-1/cam-1  online",
        "bundle toy",
        "alert open",
        "alert close",
        "picture ",
        "1 of 6 anomalous",
    ):
        assert words in text


def test_replay_tells_by_its_exit_code_that_alerts_still_wait(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    assert cv2.imwrite(str(frames / "0.png"), surface(defect=True))
    done = station("run", "--config", write_config(tmp_path, "folder:frames", free_port()))
    assert done.returncode == 1
    assert "alerts and pictures wait for the next start" in done.stderr


def test_systemd_is_told_ready_alive_and_stopping(tmp_path: Path, camera: MjpegServer, broker: Mosquitto) -> None:
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        config = write_config(tmp_path, camera.url, broker.port)
        with StationProcess(config, tmp_path / "log", **environment) as process:
            while heard.count("WATCHDOG=1") < 3:
                heard += manager.recv(4096).decode().splitlines()
            assert heard.index("READY=1") < heard.index("WATCHDOG=1")
            process.signal(signal.SIGTERM)
            while "STOPPING=1" not in heard:
                heard += manager.recv(4096).decode().splitlines()
            assert process.wait(timeout=5) == 0
    assert any(line.startswith("STATUS=online; ") for line in heard)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ('[camera]\nurl = "folder:frames"\npolicy = "newest"', "camera.policy"),
        ('[mqtt]\nhots = "x"', "did you mean mqtt.host?"),
    ],
)
def test_settings_errors_exit_78(tmp_path: Path, broken: str, words: str) -> None:
    config = tmp_path / "station.toml"
    config.write_text(f'bundle = "bundle"\n[judge]\nthreshold = 1\n{broken}\n')
    done = station("run", "--config", config)
    assert done.returncode == 78
    assert words in done.stderr
    assert str(config) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_bundle_is_one_clear_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, "folder:frames", 1883)
    shutil.rmtree(tmp_path / "bundle")
    done = station("run", "--config", config)
    assert done.returncode == 1
    assert str(tmp_path / "bundle") in done.stderr
    assert "Traceback" not in done.stderr
