"""The parent's side of ``rtsp_server.py``: an RTSP camera that freezes, thaws, goes away and comes back."""

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import final

DEBIAN_PYTHON = "/usr/bin/python3"  # the bindings of GStreamer's RTSP server are no wheel
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad"
)
_SERVER = Path(__file__).with_name("rtsp_server.py")


def why_no_rtsp_server() -> str | None:
    """Why this machine cannot serve RTSP; None if it can."""
    if not Path(DEBIAN_PYTHON).exists():
        return f"no {DEBIAN_PYTHON}"
    check = subprocess.run([DEBIAN_PYTHON, str(_SERVER), "--check"], capture_output=True, text=True, check=False)
    if check.returncode == 0:
        return None
    return f"no RTSP server ({check.stderr.strip().splitlines()[-1]}): apt-get install {PACKAGES}"


@final
class RtspCamera:
    """``with RtspCamera() as camera: cv2.VideoCapture(camera.url)``; ``url`` stays the same after ``restart``."""

    def __init__(self, user: str = "", password: str = "") -> None:
        self._login = (user, password)
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        user, password = self._login
        return f"rtsp://{f'{user}:{password}@' if user else ''}127.0.0.1:{self._port}/stream"

    def start(self) -> None:
        user, password = self._login
        command = [DEBIAN_PYTHON, str(_SERVER), f"--port={self._port}", f"--user={user}", f"--password={password}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.__stderr__, text=True)
        self._port = int(self._next_word_after("port"))

    def transport(self) -> str:
        """The Transport header of the next client that sets the stream up."""
        return self._next_word_after("setup")

    def freeze(self) -> None:
        """Fall silent, with every connection open."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Go away without a word."""
        self._running.kill()
        self._running.communicate()

    def __enter__(self) -> "RtspCamera":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def _running(self) -> "subprocess.Popen[str]":
        assert self._process is not None, "start it first"
        return self._process

    def _next_word_after(self, word: str) -> str:
        assert self._running.stdout is not None
        for line in self._running.stdout:
            if line.startswith(word + " "):
                return line.split()[1]
        raise AssertionError(f"the RTSP server ended with exit code {self._running.wait()}; its error is above")
