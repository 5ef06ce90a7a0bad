"""SIGHUP: new settings hold without a new process, and bad ones change nothing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from station.messages import Info, Status
from tests.e2e.test_station_run import Line, wait_for_log, write_config
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import Mosquitto, Subscriber
from tests.support.station_process import StationProcess

pytestmark = pytest.mark.e2e


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    with MjpegServer(fps=25, picture=Line().picture) as camera:
        yield camera


def statuses(subscriber: Subscriber) -> list[Status]:
    return [Status.model_validate_json(payload) for payload in subscriber.on("/status")]


def thresholds(subscriber: Subscriber) -> list[float]:
    return [Info.model_validate_json(payload).threshold for payload in subscriber.on("/info")]


def test_new_settings_hold_after_sighup_in_the_same_process(tmp_path: Path, camera: MjpegServer) -> None:
    with Mosquitto(tmp_path) as broker, Subscriber(broker.port) as subscriber:
        config = write_config(tmp_path, camera.url, broker.port)
        with StationProcess(config, tmp_path / "log") as process:
            subscriber.wait_for(lambda _: thresholds(subscriber) == [40] and subscriber.on("/score"))
            config.write_text(config.read_text().replace("threshold = 40", "threshold = 60"))
            process.signal(signal.SIGHUP)
            subscriber.wait_for(lambda _: thresholds(subscriber) == [40, 60])
            subscriber.wait_for(lambda _: [s.state for s in statuses(subscriber)] == ["online", "degraded", "online"])
            first, between, last = statuses(subscriber)
            assert between.reasons[0].startswith("reloading: ")
            assert first.session != last.session
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        subscriber.wait_for(lambda _: statuses(subscriber)[-1].state == "stopped")
        assert "offline" not in {status.state for status in statuses(subscriber)}


def test_settings_that_cannot_be_used_leave_everything_as_it_was(tmp_path: Path, camera: MjpegServer) -> None:
    with Mosquitto(tmp_path) as broker, Subscriber(broker.port) as subscriber:
        config = write_config(tmp_path, camera.url, broker.port, '[log]\nformat = "json"')
        with StationProcess(config, tmp_path / "log") as process:
            subscriber.wait_for(lambda _: subscriber.on("/score"))
            good = config.read_text()
            for bad, words in (
                (good.replace("threshold = 40", "treshold = 60"), "did you mean judge.threshold?"),
                (good.replace('"bundle"', '"nowhere"'), "nowhere"),
                (good.replace('bundle = "bundle"', 'bundle = "bundle"\nstate = "elsewhere"'), "needs a restart"),
            ):
                config.write_text(bad)
                process.signal(signal.SIGHUP)
                wait_for_log(process, "not reloaded", words)
            seen = len(subscriber.on("/score"))
            subscriber.wait_for(lambda _: len(subscriber.on("/score")) > seen + 5)
            assert [status.state for status in statuses(subscriber)] == ["online"]


def test_sigterm_right_after_sighup_still_stops(tmp_path: Path, camera: MjpegServer) -> None:
    with Mosquitto(tmp_path) as broker, Subscriber(broker.port) as subscriber:
        with StationProcess(write_config(tmp_path, camera.url, broker.port), tmp_path / "log") as process:
            subscriber.wait_for(lambda _: subscriber.on("/score"))
            process.signal(signal.SIGHUP)
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        subscriber.wait_for(lambda _: statuses(subscriber)[-1].state == "stopped")
