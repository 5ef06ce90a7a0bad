"""Capture on real streams over the loopback interface: MJPEG over HTTP and H.264 over RTSP."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from station.camera import Capture, CaptureStats
from station.frames import Frame
from station.settings import CameraSettings
from tests.support.mjpeg_server import MjpegServer, number_of
from tests.support.rtsp_camera import RtspCamera, why_no_rtsp_server
from tests.support.webs import web

PATIENCE = 30  # seconds until a test gives up waiting


def settings_for(url: str, *, read_timeout: float, policy: str = "auto") -> CameraSettings:
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


def wait_for(capture: Capture, condition: Callable[[CaptureStats], bool]) -> CaptureStats:
    """Take frames until the statistics are as they should be."""
    for _ in range(PATIENCE * 100):
        capture.get(0.01)
        stats = capture.stats
        if condition(stats):
            return stats
    raise AssertionError(f"waited in vain: {capture.stats}")


def says(*reasons: str) -> Callable[[CaptureStats], bool]:
    return lambda stats: any(reason in (stats.fault or "") for reason in reasons)


def is_well(stats: CaptureStats) -> bool:
    return stats.connected and stats.fault is None


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
    with MjpegServer() as camera, Capture(settings_for(camera.url, read_timeout=1)) as capture:
        next_frame(capture)
        camera.stall()
        stats = wait_for(capture, says("sent no frame for 1 s", "no answer for 1 s"))
        assert not stats.connected
        assert str(stats.fault).startswith("camera-stalled: no frame for")
        camera.resume()
        assert wait_for(capture, is_well).reconnects >= 1
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


@pytest.mark.parametrize("lost", [0.1, 0.6])
def test_a_jpeg_cut_short_in_a_stream_that_goes_on_is_told_damaged(lost: float) -> None:
    """FFmpeg fills what is missing from the picture before, without a word: the picture would look like a seam."""
    with (
        MjpegServer(fps=50, picture=lambda number: web(number % 100)) as camera,
        Capture(settings_for(camera.url, policy="every", read_timeout=5)) as capture,
    ):
        assert {next_frame(capture).damage for _ in range(40)} == {None}
        camera.lost = lost
        while (damage := next_frame(capture).damage) is None:
            pass
        assert "of the picture did not arrive" in damage
        assert all(next_frame(capture).damage for _ in range(20)), "not one of them passes"
        camera.lost = 0.0
        while next_frame(capture).damage:
            pass
        assert {next_frame(capture).damage for _ in range(20)} == {None}
        assert capture.stats.reconnects == 0


def test_a_camera_that_comes_late_is_found() -> None:
    with MjpegServer() as camera:
        port, url = camera.port, camera.url
    with Capture(settings_for(url, read_timeout=5)) as capture:
        wait_for(capture, says(f"cannot open {url}: 127.0.0.1 port {port}: Connection refused"))
        with MjpegServer(port=port):
            assert wait_for(capture, is_well).reconnects == 0


def test_credentials_with_special_characters_work() -> None:
    camera = MjpegServer(credentials=("line 1", "p@ss/w:rd?"))
    with camera, Capture(settings_for(camera.url, read_timeout=5)) as capture:
        next_frame(capture)


_TRY_TO_READ = """
import sys
from station.camera import Capture
from station.settings import CameraSettings
for url in sys.argv[1:]:
    with Capture(CameraSettings(url=url, read_timeout=1, reconnect_min=0.01, reconnect_max=0.02)) as capture:
        while (fault := capture.stats.fault) is None or "cannot open" not in fault:
            capture.get(0.01)
        print("fault:", fault)
"""


def test_a_password_appears_in_no_output_whatever_fails() -> None:
    """The whole output of a process: our log, OpenCV's and FFmpeg's."""
    with MjpegServer(credentials=("admin", "right")) as camera:
        hosts = [f"{scheme}://{{}}@127.0.0.1:{port}/x" for scheme in ("http", "rtsp") for port in (camera.port, 1)]
        command = [sys.executable, "-c", _TRY_TO_READ, *(host.format("admin:sekrit") for host in hosts)]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
    for host in hosts:
        assert f"cannot open {host.format('***')}" in child.stdout
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
        stats = wait_for(capture, says("sent no frame for 2 s", "no answer for 2 s"))
        assert "sekrit" not in str(stats.fault)
        rtsp_camera.thaw()
        assert wait_for(capture, is_well).reconnects >= 1
        rtsp_camera.kill()
        wait_for(capture, says("Connection refused"))
        rtsp_camera.start()
        assert wait_for(capture, is_well).reconnects >= 2
