"""The capture thread on a scripted source, a test double; test_camera_streams.py has real cameras."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest

from station.camera import CameraError, Capture, EndOfStream, Picture
from station.camera.source import StalledError, UnpluggedError
from station.frames import Frame
from station.settings import CameraSettings
from tests.support.mjpeg_server import number_of, numbered_picture

PATIENCE = 20  # seconds until a test gives up waiting


class ScriptedSource:
    """A test double: every ``open`` calls the next script, whose values are read; an exception in it is raised."""

    def __init__(self, *scripts: Callable[[], Iterator[int]], live: bool) -> None:
        self.live = live
        self.reads = 0
        self._scripts = iter(scripts)
        self._numbers: Iterator[int] = iter(())

    def open(self) -> None:
        self._numbers = next(self._scripts)()

    def read(self) -> Picture | None:
        self.reads += 1
        number = next(self._numbers, None)
        return None if number is None else Picture(np.full((2, 2, 3), number, np.uint8))

    def close(self) -> None:
        self._numbers = iter(())


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


LIVE = CameraSettings(url="rtsp://nowhere/1", read_timeout=5, reconnect_min=0.001, reconnect_max=0.01)
REPLAY = CameraSettings(url="file:nothing")


def take_all(capture: Capture) -> list[Frame]:
    frames = []
    try:
        while True:
            frame = capture.get(PATIENCE)
            assert frame is not None, "no frame, and no end"
            frames.append(frame)
    except EndOfStream:
        return frames


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(PATIENCE * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("waited in vain")


def test_every_hands_over_all_frames_in_order() -> None:
    capture = Capture(REPLAY, source=ScriptedSource(lambda: iter(range(50)), live=False))
    with capture:
        frames = take_all(capture)
        assert [frame.seq for frame in frames] == list(range(1, 51))
        assert [frame.image[0, 0, 0] for frame in frames] == list(range(50))
        assert [frame.monotonic for frame in frames] == sorted(frame.monotonic for frame in frames)
        assert frames[0].captured_at.utcoffset() == timedelta(0)
        with pytest.raises(EndOfStream):
            capture.get(0)
        assert (capture.stats.frames, capture.stats.dropped, capture.stats.fault) == (50, 0, None)


def test_every_holds_the_source_back_while_nobody_takes_frames() -> None:
    source = ScriptedSource(lambda: iter(range(50)), live=False)
    with Capture(REPLAY, source=source) as capture:
        wait_until(lambda: source.reads == 5)  # four wait, the fifth has no room
        threading.Event().wait(0.05)
        assert source.reads == 5
        assert capture.stats.fault is None  # the consumer is late, not the camera
        assert len(take_all(capture)) == 50


def test_latest_replaces_what_nobody_took_and_counts_it() -> None:
    everything_read, finish = threading.Event(), threading.Event()

    def script() -> Iterator[int]:
        yield from range(10)
        everything_read.set()
        finish.wait(PATIENCE)

    with Capture(LIVE, source=ScriptedSource(script, live=True)) as capture:
        assert everything_read.wait(PATIENCE)
        frame = capture.get(0)
        assert frame is not None
        assert (frame.seq, frame.image[0, 0, 0]) == (10, 9)
        assert (capture.stats.frames, capture.stats.dropped) == (10, 9)
        finish.set()


def test_a_read_that_hangs_is_a_fault_and_holds_nobody_up() -> None:
    hanging, release = threading.Event(), threading.Event()

    def script() -> Iterator[int]:
        yield 1
        hanging.set()
        release.wait(PATIENCE)

    clock = Clock()
    with Capture(LIVE, source=ScriptedSource(script, live=True), clock=clock) as capture:
        assert hanging.wait(PATIENCE)
        assert capture.get(0) is not None
        clock.now += 4.9
        assert capture.stats.fault is None
        clock.now += 2.1
        assert capture.get(0) is None
        assert capture.stats.fault == "camera-stalled: no frame for 7 s"
        capture.stop(timeout=0.01)  # returns, with the read still under way
        with pytest.raises(EndOfStream, match="stopped"):
            capture.get(0)
        release.set()


def test_a_live_camera_may_be_missing_at_start_and_come_back_later() -> None:
    finish, checked = threading.Event(), threading.Event()

    def missing() -> Iterator[int]:
        raise CameraError("unplugged")

    def lost_after_one() -> Iterator[int]:
        yield 1
        checked.wait(PATIENCE)
        raise CameraError("pulled out")

    def well() -> Iterator[int]:
        yield 2
        finish.wait(PATIENCE)

    scripts = [missing] * 3 + [lost_after_one] + [missing] * 2 + [well]
    with Capture(LIVE, source=ScriptedSource(*scripts, live=True)) as capture:
        first = capture.get(PATIENCE)
        assert first is not None
        assert (capture.stats.connected, capture.stats.fault, capture.stats.reconnects) == (True, None, 0)
        checked.set()
        second = capture.get(PATIENCE)
        assert second is not None
        assert (first.seq, second.seq) == (1, 2)
        assert (capture.stats.connected, capture.stats.fault, capture.stats.reconnects) == (True, None, 1)
        finish.set()


@pytest.mark.parametrize("kind", [CameraError, StalledError, UnpluggedError])
def test_a_missing_camera_is_told_with_its_reason_and_for_how_long(kind: type[CameraError]) -> None:
    def missing() -> Iterator[int]:
        raise kind("no such device")

    clock = Clock()
    patient = LIVE.model_copy(update={"reconnect_min": PATIENCE, "reconnect_max": PATIENCE})
    with Capture(patient, source=ScriptedSource(missing, live=True), clock=clock) as capture:
        wait_until(lambda: capture.stats.fault is not None)
        assert (capture.stats.fault, capture.stats.connected) == (f"{kind.code}: no such device", False)
        clock.now += 12
        assert capture.stats.fault == f"{kind.code}: no frame for 12 s: no such device"


def test_pauses_grow_to_the_longest_and_are_jittered() -> None:
    settings = LIVE.model_copy(update={"reconnect_min": 0.5, "reconnect_max": 30})
    capture = Capture(settings, source=ScriptedSource(live=True))
    for failures, longest in [(1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (2000, 30)]:
        pauses = [capture._pause(failures) for _ in range(300)]
        assert 0.5 <= min(pauses) < 0.5 + 0.2 * (longest - 0.5)
        assert longest - 0.2 * (longest - 0.5) < max(pauses) <= longest


def test_a_camera_that_opens_but_gives_nothing_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    capture = Capture(LIVE, source=ScriptedSource(*[lambda: iter(())] * 4, lambda: iter([7]), live=True))

    def record(failures: int) -> float:
        asked.append(failures)
        return 0.0 if len(asked) < 5 else float(PATIENCE)

    monkeypatch.setattr(capture, "_pause", record)
    with capture:
        wait_until(lambda: len(asked) == 5)
    assert asked == [1, 2, 3, 4, 1]  # a frame makes it a good connection again


def test_a_bug_in_a_source_reaches_the_consumer() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("a bug")

    with Capture(LIVE, source=ScriptedSource(broken, live=True)) as capture:
        assert capture.get(PATIENCE) is not None
        with pytest.raises(ZeroDivisionError, match="a bug"):
            capture.get(PATIENCE)


def test_replay_keeps_its_pace() -> None:
    clock = Clock()
    waits: list[float] = []

    class Recorder(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(max(timeout, 0.0))
            clock.now += waits[-1]
            return False

    settings = REPLAY.model_copy(update={"fps": 4})
    capture = Capture(settings, source=ScriptedSource(lambda: iter(range(6)), live=False), clock=clock)
    capture._stopping = Recorder()
    with capture:
        frames = take_all(capture)
    assert [frame.monotonic for frame in frames] == [1000 + number / 4 for number in range(6)]


def write_folder(folder: Path, count: int) -> None:
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), numbered_picture(number))


def test_loop_starts_again_at_the_end(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    with Capture(CameraSettings(url=f"folder:{tmp_path}", loop=True)) as capture:
        frames = [capture.get(PATIENCE) for _ in range(8)]
    assert [frame and (frame.seq, frame.name) for frame in frames] == [(n + 1, f"{n % 3}.png") for n in range(8)]
    assert [frame and number_of(frame.image) for frame in frames] == [n % 3 for n in range(8)]


def test_an_unreadable_file_ends_a_replay_with_its_name(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    (tmp_path / "9.png").write_bytes(b"no image")
    with Capture(CameraSettings(url=f"folder:{tmp_path}")) as capture:
        assert capture.get(PATIENCE) is not None
        assert capture.get(PATIENCE) is not None
        with pytest.raises(CameraError, match=r"9\.png"):
            capture.get(PATIENCE)
        assert "9.png" in str(capture.stats.fault)


def test_a_missing_folder_is_an_error_at_once(tmp_path: Path) -> None:
    capture = Capture(CameraSettings(url=f"folder:{tmp_path}/nowhere"))
    with pytest.raises(CameraError, match="no such folder"):
        capture.start()
    capture.stop()


def test_a_source_without_frames_is_an_error() -> None:
    endless = REPLAY.model_copy(update={"loop": True})
    capture = Capture(endless, source=ScriptedSource(lambda: iter(()), live=False))
    with capture, pytest.raises(CameraError, match="holds no frame"):
        capture.get(PATIENCE)


def test_stop_ends_a_capture_whose_consumer_is_gone() -> None:
    source = ScriptedSource(lambda: iter(range(50)), live=False)
    capture = Capture(REPLAY, source=source)
    capture.start()
    wait_until(lambda: source.reads == 5)
    capture.stop(timeout=PATIENCE)
    assert not capture._thread.is_alive()
