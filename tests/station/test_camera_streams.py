"""Capture on real streams over the loopback interface: MJPEG over HTTP and H.264 over RTSP."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from station.camera import Capture
from station.frames import Frame
from station.settings import CameraSettings
from tests.support.mjpeg_server import MjpegServer, number_of
from tests.support.rtsp_camera import RtspCamera, why_no_rtsp_server

PATIENCE = 30  # seconds until a test gives up waiting
_pause = threading.Event()


def settings_for(url: str, *, read_timeout: float = 0.5, policy: str = "auto") -> CameraSettings:
    return CameraSettings.model_validate(
        {
            "url": url,
            "policy": policy,
            "read_timeout": read_timeout,
            "reconnect_min": 0.02,
            "reconnect_max": 0.1,
        }
    )


def next_frame(capture: Capture) -> Frame:
    frame = capture.get(PATIENCE)
    assert frame is not None, f"no frame: {capture.stats}"
    return frame


def wait_for_fault(capture: Capture, accept: Callable[[str], bool] = bool) -> str:
    for _ in range(PATIENCE * 100):
        capture.get(0)
        fault = capture.stats.fault
        if fault is not None and accept(fault):
            return fault
        _pause.wait(0.01)
    raise AssertionError(f"no such fault: {capture.stats}")


@pytest.mark.parametrize("content_length", [True, False])
def test_mjpeg_gives_the_pictures_in_order(*, content_length: bool) -> None:
    with (
        MjpegServer(fps=100, content_length=content_length) as camera,
        Capture(settings_for(camera.url, policy="every", read_timeout=5)) as capture,
    ):
        frames = [next_frame(capture) for _ in range(20)]
    # FFmpeg may keep the pictures that it probed the stream with to itself, at the start only.
    numbers = [(number_of(frame.image) - number) % 16 for number, frame in enumerate(frames)]
    assert len(set(numbers)) == 1
    assert [frame.seq for frame in frames] == list(range(1, 21))
    assert frames[0].image.shape == (120, 160, 3)


def test_mjpeg_that_falls_silent_is_a_fault_until_it_speaks_again() -> None:
    with MjpegServer() as camera, Capture(settings_for(camera.url)) as capture:
        next_frame(capture)
        camera.stall()
        wait_for_fault(capture, lambda fault: fault.startswith("no frame for 1 s"))
        assert not capture.stats.connected
        camera.resume()
        next_frame(capture)
        assert (capture.stats.connected, capture.stats.fault, capture.stats.reconnects) == (True, None, 1)
        assert camera.connections >= 2


def test_a_picture_cut_by_a_broken_connection_is_never_handed_over() -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(4)]

    def looks_like(part: np.ndarray, rows: slice) -> int:
        return int(np.argmin([np.abs(picture[rows] - part.astype(float)).mean() for picture in pictures]))

    top, bottom = slice(0, 16), slice(224, 240)
    with (
        MjpegServer(fps=50, picture=lambda number: pictures[number % 4]) as camera,
        Capture(settings_for(camera.url, policy="every", read_timeout=5)) as capture,
    ):
        for number in range(40):
            frame = next_frame(capture)
            assert looks_like(frame.image[top], top) == looks_like(frame.image[bottom], bottom)
            if number % 8 == 7:
                camera.drop(in_mid_picture=True)
        assert capture.stats.reconnects >= 4


def test_a_camera_that_comes_late_is_found() -> None:
    with MjpegServer() as camera:
        port, url = camera.port, camera.url
    with Capture(settings_for(url)) as capture:
        fault = wait_for_fault(capture)
        assert f"cannot open {url}: 127.0.0.1 port {port}: Connection refused" in fault
        with MjpegServer(port=port):
            next_frame(capture)
            assert (capture.stats.fault, capture.stats.reconnects) == (None, 0)


def test_credentials_with_special_characters_work() -> None:
    camera = MjpegServer(credentials=("line 1", "p@ss/w:rd?"))
    with camera, Capture(settings_for(camera.url, read_timeout=5)) as capture:
        next_frame(capture)


_TRY_TO_READ = """
import sys
from station.camera import Capture
from station.settings import CameraSettings
with Capture(CameraSettings(url=sys.argv[1], read_timeout=1, reconnect_min=0.01, reconnect_max=0.02)) as capture:
    while (fault := capture.stats.fault) is None:
        capture.get(0.01)
    print("fault:", fault)
"""


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
@pytest.mark.parametrize("there", [True, False])
def test_a_password_appears_in_no_output_whatever_fails(scheme: str, *, there: bool) -> None:
    """The whole output of a process: our log, OpenCV's and FFmpeg's."""
    with MjpegServer(credentials=("admin", "right")) as camera:
        port = camera.port if there else 1
        url = f"{scheme}://admin:sekrit@127.0.0.1:{port}/stream.mjpg"
        child = subprocess.run([sys.executable, "-c", _TRY_TO_READ, url], capture_output=True, text=True, check=True)
    assert f"fault: cannot open {scheme}://***@127.0.0.1:{port}/stream.mjpg" in child.stdout
    assert "sekrit" not in child.stdout + child.stderr


@pytest.fixture(scope="module")
def rtsp() -> None:
    reason = why_no_rtsp_server()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def rtsp_camera(rtsp: None) -> Iterator[RtspCamera]:
    with RtspCamera("admin", "sekrit") as camera:
        yield camera


def test_rtsp_moves_comes_by_tcp_and_logs_in(rtsp_camera: RtspCamera) -> None:
    with Capture(settings_for(rtsp_camera.url, read_timeout=10)) as capture:
        frames = [next_frame(capture) for _ in range(10)]
    assert {frame.image.shape for frame in frames} == {(120, 160, 3)}
    assert all((a.image != b.image).any() for a, b in pairwise(frames))
    assert "TCP" in rtsp_camera.transport()


def test_rtsp_that_freezes_or_restarts_is_found_again(rtsp_camera: RtspCamera) -> None:
    with Capture(settings_for(rtsp_camera.url, read_timeout=2)) as capture:
        next_frame(capture)
        rtsp_camera.freeze()
        fault = wait_for_fault(capture, lambda fault: "sent no frame for 2 s" in fault or "no answer" in fault)
        assert "sekrit" not in fault
        rtsp_camera.thaw()
        next_frame(capture)
        assert (capture.stats.fault, capture.stats.reconnects) == (None, 1)
        rtsp_camera.kill()
        wait_for_fault(capture, lambda fault: "Connection refused" in fault)
        rtsp_camera.start()
        next_frame(capture)
        assert (capture.stats.fault, capture.stats.reconnects) == (None, 2)
