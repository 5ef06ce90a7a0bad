"""The daemon's own logic, with real parts around it; its life as a process is in tests/e2e."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.bundle import read_bundle
from engines.errors import BackendError
from station import daemon, inspecting
from station.calibration import CalibrationError
from station.camera import CameraError
from station.inspection import Inspector, Prepared
from station.settings import (
    CameraSettings,
    JudgeSettings,
    MqttSettings,
    Settings,
)
from station.state import StateError, StateFolder
from station.systemd import Notifier
from station.verdict import read_verdict
from tests.support.bundles import GREY, make_bundle
from tests.support.mosquitto import HOST, free_port


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("STATION_BUNDLE", "STATION_CAMERA", "STATION_MQTT"):
        monkeypatch.delenv(name, raising=False)
    make_bundle(tmp_path / "bundle")
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        assert cv2.imwrite(str(frames / f"{number}.png"), np.full((64, 64, 3), GREY, np.uint8))
    return Settings(
        bundle=tmp_path / "bundle",
        camera=CameraSettings(url=f"folder:{frames}", loop=True, fps=50),
        judge=JudgeSettings(threshold=1),
        mqtt=MqttSettings(host=HOST, port=free_port()),
    )


@pytest.fixture
def make(settings: Settings) -> Iterator[Callable[..., daemon.Daemon]]:
    """Makes daemons, as ``daemon.run`` does."""
    with StateFolder(settings.state_folder, settings.outbox) as state:

        def make_daemon(settings: Settings = settings, notifier: Notifier | None = None) -> daemon.Daemon:
            return daemon.Daemon(settings, notifier or Notifier(), state, reread=lambda: settings)

        yield make_daemon


class Manager:
    """Listens as systemd would."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.notifier = Notifier(str(folder / "notify"), watchdog_seconds=0.4)

    def hear(self, seconds: float) -> list[str]:
        heard: list[str] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                heard += self.socket.recv(4096).decode().splitlines()
            except TimeoutError:
                break
        return heard


@pytest.fixture
def manager(tmp_path: Path):
    manager = Manager(tmp_path)
    with manager.socket:
        yield manager


def test_the_watchdog_is_fed_by_inspected_frames_and_not_by_a_timer(
    make: Callable[..., daemon.Daemon], settings: Settings, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, released = threading.Event(), threading.Event()
    infer = Inspector.infer

    def infer_or_hang(self: Inspector, prepared: Prepared):
        if hanging.is_set():
            released.wait(30)
        return infer(self, prepared)

    monkeypatch.setattr(Inspector, "infer", infer_or_hang)
    station = make(notifier=manager.notifier)
    thread = threading.Thread(target=station.run)
    thread.start()
    heard: list[str] = []
    while heard.count("WATCHDOG=1") < 2:
        heard += manager.hear(0.2)
    hanging.set()
    manager.hear(0.6)  # what was on the way
    assert "WATCHDOG=1" not in manager.hear(1.2)
    released.set()
    hanging.clear()
    heard = []
    while "WATCHDOG=1" not in heard:
        heard += manager.hear(0.2)
    station.stop("the test is over")
    thread.join(10)
    assert not thread.is_alive()


def test_not_ready_before_the_camera_serves_but_patient_with_it(
    make: Callable[..., daemon.Daemon], settings: Settings, manager: Manager
) -> None:
    absent = settings.model_copy(
        update={"camera": CameraSettings(url=f"http://{HOST}:{free_port()}/", read_timeout=0.3, reconnect_max=0.5)}
    )
    station = make(absent, manager.notifier)
    thread = threading.Thread(target=station.run)
    thread.start()
    heard: list[str] = []
    while "EXTEND_TIMEOUT_USEC=30000000" not in heard:
        heard += manager.hear(0.2)
    assert "READY=1" not in heard
    station.stop("the test is over")
    thread.join(10)
    assert not thread.is_alive()


def test_systemd_waits_for_an_engine_that_is_being_built_and_is_told_how_far_it_is(
    make: Callable[..., daemon.Daemon], settings: Settings, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()

    def build_for_ever(bundle, settings, on_progress):
        """Double of open_engine, for a build that takes longer than this test."""
        try:
            while True:
                on_progress("Timing graph nodes", 0.25)
                time.sleep(0.01)
        finally:
            stopped.set()

    monkeypatch.setattr(inspecting, "open_engine", build_for_ever)
    station = make(notifier=manager.notifier)
    thread = threading.Thread(target=station.run)
    thread.start()
    heard: list[str] = []
    while heard.count("EXTEND_TIMEOUT_USEC=30000000") < 2 or not any("25% done" in line for line in heard):
        heard += manager.hear(0.2)
    assert "READY=1" not in heard
    station.stop("the test is over")
    thread.join(10)
    assert not thread.is_alive()
    assert stopped.wait(10)


def test_systemd_is_not_told_to_wait_for_a_build_that_hangs(
    make: Callable[..., daemon.Daemon], settings: Settings, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(bundle, settings, on_progress):
        """Double of open_engine."""
        on_progress("Timing graph nodes", 0.25)
        released.wait(30)
        raise BackendError("released")

    monkeypatch.setattr(inspecting, "open_engine", hang)
    station = make(notifier=manager.notifier)

    def run() -> None:
        with pytest.raises(BackendError, match="released"):
            station.run()

    thread = threading.Thread(target=run)
    thread.start()
    heard: list[str] = []
    while "EXTEND_TIMEOUT_USEC=30000000" not in heard:
        heard += manager.hear(0.2)
    assert not any(line.startswith("EXTEND") for line in manager.hear(1.2))
    released.set()
    thread.join(10)
    assert not thread.is_alive()


def test_an_engine_that_fails_ends_the_run_with_its_error(
    make: Callable[..., daemon.Daemon], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Inspector, prepared: Prepared) -> None:
        raise BackendError("out of memory")

    monkeypatch.setattr(Inspector, "infer", fail)
    with pytest.raises(BackendError, match="out of memory"):
        make().run()


def test_frames_that_do_not_suit_the_model_are_told_as_a_camera_error(
    make: Callable[..., daemon.Daemon], settings: Settings, tmp_path: Path
) -> None:
    assert cv2.imwrite(str(tmp_path / "frames" / "0.png"), np.full((8, 8, 3), GREY, np.uint8))
    with pytest.raises(CameraError, match=r"frame 1 0\.png: .*"):
        make().run()


def test_the_settings_threshold_wins_over_the_calibration(settings: Settings, tmp_path: Path) -> None:
    bundle = read_bundle(settings.bundle)
    verdict = read_verdict(settings, bundle)
    assert (verdict.threshold, verdict.calibration, verdict.calibrated_at, verdict.median_good) == (1, None, None, None)
    with pytest.raises(CalibrationError):
        read_verdict(settings.model_copy(update={"calibration": tmp_path / "none.json"}), bundle)


def test_a_second_station_may_not_use_the_same_state_folder(settings: Settings) -> None:
    refused = pytest.raises(StateError, match="another station works with this state folder")
    with StateFolder(settings.state_folder, settings.outbox), refused:
        StateFolder(settings.state_folder, settings.outbox)
    StateFolder(settings.state_folder, settings.outbox).close()  # given back


def test_a_state_folder_that_cannot_be_made_does_not_keep_the_station_from_inspecting(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with StateFolder(tmp_path / "file" / "state", settings.outbox) as state:
        assert state.outbox.trouble is not None
