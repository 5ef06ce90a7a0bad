"""``gstreamer:`` with Debian's OpenCV, since the wheels have no GStreamer. Runs in Debian's Python."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.rtsp_camera import DEBIAN_PYTHON

REPOSITORY = Path(__file__).parents[2]

# Debian's NumPy and OpenCV belong together, so what this environment adds (pydantic, structlog) comes after them.
_CHILD = """
import sys
sys.path.insert(0, {repository!r})
sys.path.append({packages!r})
from station.camera import CameraError, Capture
from station.settings import CameraSettings

def capture(pipeline, **more):
    settings = {{"read_timeout": 1, "reconnect_min": 20, "reconnect_max": 20, "policy": "every", **more}}
    return Capture(CameraSettings(url="gstreamer:" + pipeline, **settings))
"""


def _why_not() -> str | None:
    probe = (
        "import sys, cv2; assert cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER); "
        f"assert sys.version_info[:2] == {sys.version_info[:2]}"
    )
    if not Path(DEBIAN_PYTHON).exists():
        return f"no {DEBIAN_PYTHON}"
    done = subprocess.run([DEBIAN_PYTHON, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return (
        f"needs {DEBIAN_PYTHON} of the same version as this Python, with an OpenCV that has GStreamer "
        f"(apt-get install python3-opencv): {done.stderr.strip().splitlines()[-1]}"
    )


@pytest.fixture(scope="module", autouse=True)
def _debian_opencv() -> None:
    reason = _why_not()
    if reason:
        pytest.skip(reason)


def run(program: str) -> str:
    setup = _CHILD.format(repository=str(REPOSITORY), packages=sysconfig.get_path("purelib"))
    done = subprocess.run(
        [DEBIAN_PYTHON, "-c", setup + program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_pipeline_gives_all_its_frames_and_ends_as_a_lost_camera() -> None:
    output = run("""
pipeline = "videotestsrc num-buffers=20 ! video/x-raw,width=160,height=120,format={} ! appsink"
for layout in "BGR", "GRAY8":
    with capture(pipeline.format(layout)) as camera:
        frames = [camera.get(20) for _ in range(20)]
        assert [frame.seq for frame in frames] == list(range(1, 21)), frames
        assert {(frame.image.shape, frame.image.dtype.name) for frame in frames} == {((120, 160, 3), "uint8")}
        # Two of videotestsrc's bars: white, and the last but one, red.
        # In one piece: the capture thread writes its log to the same place.
        sys.stdout.write(" ".join(map(str, (layout, *frames[0].image[10, [5, 130]].tolist()))) + "\\n")
        while camera.stats.fault is None:
            camera.get(0.01)
        assert "ended the stream" in camera.stats.fault and not camera.stats.connected
""")
    assert "BGR [255, 255, 255] [0, 0, 255]" in output
    assert "GRAY8 [235, 235, 235] [81, 81, 81]" in output


def test_a_layout_that_would_be_misread_is_refused() -> None:
    run("""
for layout in "NV12", "BGRx", "GRAY16_LE":
    with capture(f"videotestsrc ! video/x-raw,width=160,height=120,format={layout} ! appsink") as camera:
        while camera.stats.fault is None:
            assert camera.get(0.01) is None
        assert "not BGR" in camera.stats.fault and "videoconvert" in camera.stats.fault, camera.stats
""")


def test_a_pipeline_that_hangs_blocks_nobody_and_the_process_ends() -> None:
    silent = (
        'udpsrc address=127.0.0.1 port=0 caps=\\"application/x-rtp,media=video,encoding-name=JPEG,clock-rate=90000\\"'
    )
    run(f"""
with capture("{silent} ! rtpjpegdepay ! jpegdec ! videoconvert ! video/x-raw,format=BGR ! appsink") as camera:
    while camera.stats.fault is None:
        assert camera.get(0.01) is None
    assert camera.stats.fault == "camera-stalled: no frame for 1 s", camera.stats
""")


def test_a_pipeline_that_does_not_start_is_told_without_its_password() -> None:
    output = run("""
with capture("rtspsrc location=rtsp://admin:sekrit@127.0.0.1:1/x ! decodebin ! videoconvert ! appsink") as camera:
    while camera.stats.fault is None:
        camera.get(0.01)
    print(camera.stats.fault)
""")
    assert "rtsp://***@127.0.0.1:1/x" in output
    assert "sekrit" not in output
