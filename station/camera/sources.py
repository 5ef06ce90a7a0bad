"""The sources that a URL can name."""

import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.engine import UInt8Array
from engines.errors import ImageError
from engines.images import find_images, read_image
from station.camera.source import CameraError, Picture, Source, StalledError, UnpluggedError, redact_url
from station.camera.truncation import TruncationCheck
from station.settings import CameraSettings

# Read by OpenCV whenever it opens a stream; there is no other way to hand options to FFmpeg.
# - TCP: over UDP a lost packet is a smear in the picture, and a smear looks like a defect.
# - discardcorrupt: a JPEG cut short when a connection breaks is otherwise completed from an older picture.
# - nobuffer: the frames read while probing the stream are otherwise handed out later, up to a second old.
_FFMPEG_OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_FFMPEG_OPTIONS = "rtsp_transport;tcp|fflags;+discardcorrupt+nobuffer"

_MOTION_JPEG = cv2.VideoWriter.fourcc(*"MJPG")
_DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}


class _Backend(NamedTuple):
    api: int
    name: str
    otherwise: str  # what to do where this OpenCV was built without it


_FFMPEG = _Backend(
    cv2.CAP_FFMPEG, "FFmpeg", "install opencv-python-headless, or read the stream with gstreamer:PIPELINE"
)
_GSTREAMER = _Backend(
    cv2.CAP_GSTREAMER,
    "GStreamer",
    "the wheels on PyPI have none; Debian's, Ubuntu's and JetPack's python3-opencv has it: "
    "`apt-get install python3-opencv`, `pip uninstall opencv-python-headless`, and a virtual environment made with "
    "--system-site-packages",
)
_V4L2 = _Backend(cv2.CAP_V4L2, "V4L2", "v4l2: needs Linux and an OpenCV built with V4L2")


def make_source(settings: CameraSettings) -> Source:
    """The source that ``settings.url`` names, not yet opened.

    Raises:
        CameraError: it cannot work here, whatever is plugged in: OpenCV lacks the back end, the URL has no host, ...
    """
    scheme, _, rest = settings.url.partition(":")
    path = Path(rest)  # "///dev/video0" is /dev/video0
    if scheme == "folder":
        return FolderSource(path)
    if scheme == "file":
        return VideoFileSource(path)
    if scheme == "demo":
        from station.demo.sample_line import open_sample_line  # noqa: PLC0415 - it imports this package

        return open_sample_line(rest)
    if scheme == "v4l2":
        return V4l2Source(path, settings.read_timeout)
    if scheme == "gstreamer":
        return GStreamerSource(rest, settings.read_timeout)
    return NetworkSource(settings.url, settings.read_timeout)


class FolderSource:
    """Every image file below a folder, in bytewise order; named by its path within the folder."""

    live = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: Iterator[Path] = iter(())

    def open(self) -> None:
        """List the files."""
        try:
            paths = find_images(self._folder)
        except ImageError as error:
            raise CameraError(str(error)) from error
        if not paths:
            raise CameraError(f"{self._folder}: holds no image file")
        self._paths = iter(paths)

    def read(self) -> Picture | None:
        """Read the next file."""
        path = next(self._paths, None)
        if path is None:
            return None
        try:
            return Picture(read_image(path), path.relative_to(self._folder).as_posix())
        except ImageError as error:
            raise CameraError(str(error)) from error

    def close(self) -> None:
        """Forget the list."""
        self._paths = iter(())


class _VideoSource(ABC):
    """What all sources behind ``cv2.VideoCapture`` have in common."""

    live = True

    def __init__(self, target: str, backend: _Backend, timeout: float) -> None:
        if not cv2.videoio_registry.hasBackend(backend.api):
            raise CameraError(
                f"{redact_url(target)}: this OpenCV ({cv2.__version__}) has no {backend.name}: {backend.otherwise}"
            )
        self._target = target
        self._backend = backend
        self._timeout = timeout
        self._capture: cv2.VideoCapture | None = None
        self._truncation: TruncationCheck | None = None

    def open(self) -> None:
        self.close()
        began = time.monotonic()
        capture = self._opened()
        if not capture.isOpened():
            capture.release()
            timed_out = time.monotonic() - began >= self._timeout
            where = f"cannot open {redact_url(self._target)}"
            if timed_out:
                raise StalledError(f"{where}: no answer for {self._timeout:g} s")
            raise UnpluggedError(f"{where}: {self._why_not_opened()}")
        self._capture = capture
        self._truncation = TruncationCheck() if capture.get(cv2.CAP_PROP_FOURCC) == _MOTION_JPEG else None

    def read(self) -> Picture | None:
        if self._capture is None:
            raise CameraError(f"{redact_url(self._target)} is not open")
        began = time.monotonic()
        arrived, image = self._capture.read()
        # After its time-out, FFmpeg still hands out what its decoder had held back: pictures of before the stall.
        if time.monotonic() - began >= self._timeout:
            raise StalledError(f"{redact_url(self._target)} sent no frame for {self._timeout:g} s")
        if not arrived:
            return None
        bgr = self._bgr(image)
        return Picture(bgr, damage=self._truncation.check(bgr) if self._truncation else None)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _opened(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(self._target, self._backend.api)

    @abstractmethod
    def _why_not_opened(self) -> str:
        """The reason as far as it can be found out, for the error message."""

    def _bgr(self, image: NDArray[Any]) -> UInt8Array:
        """Grey pictures, which V4L2 and GStreamer may give, as BGR; other layouts are refused."""
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return image
        # A planar format such as NV12 looks grey too, but is higher than the frame.
        height = self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT) if self._capture else 0
        if image.dtype == np.uint8 and image.size == height * image.shape[1] and image.shape[0] == height:
            return cast("UInt8Array", cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
        raise CameraError(
            f"{redact_url(self._target)} gives {image.dtype} pictures of shape {image.shape}, not BGR; with "
            "gstreamer:, let the pipeline end in `videoconvert ! video/x-raw,format=BGR ! appsink`"
        )


class VideoFileSource(_VideoSource):
    """The frames of a video file."""

    live = False

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(str(path), _FFMPEG, timeout=float("inf"))

    def open(self) -> None:
        """Open the file."""
        if not self._path.is_file():
            raise CameraError(f"{self._path}: no such file")
        super().open()

    def _why_not_opened(self) -> str:
        return "not a video that FFmpeg knows"


class V4l2Source(_VideoSource):
    """A camera of the Linux kernel, such as a USB camera."""

    def __init__(self, device: Path, timeout: float) -> None:
        self._device = device
        super().__init__(str(device), _V4L2, timeout)

    def _why_not_opened(self) -> str:
        if not self._device.exists():
            return "no such device; `v4l2-ctl --list-devices` lists the cameras"
        if not os.access(self._device, os.R_OK | os.W_OK):
            return "no permission; add this user to the group `video`"
        return "it is no camera, or another program uses it"


class GStreamerSource(_VideoSource):
    """A GStreamer pipeline that ends in an appsink.

    OpenCV before 4.8 waits for ever on a pipeline that falls silent; ``watchdog timeout=5000`` after the pipeline's
    source element turns the silence into an error, after which it is opened again.
    """

    def __init__(self, pipeline: str, timeout: float) -> None:
        if "appsink" not in pipeline:
            raise CameraError(
                f"gstreamer:{redact_url(pipeline)}: must end in an appsink, for instance "
                "`… ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1`"
            )
        super().__init__(pipeline, _GSTREAMER, timeout)

    def _why_not_opened(self) -> str:
        return "the pipeline did not start; `GST_DEBUG=3` in the environment tells why"


class NetworkSource(_VideoSource):
    """A network camera: RTSP, or MJPEG over HTTP."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(url, _FFMPEG, timeout)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:  # its text may hold the password
            host = port = None
        if not host:
            raise CameraError(
                f"{redact_url(url)}: no valid URL; write @ : / ? # in a user name or password as %40 %3A %2F %3F %23"
            )
        self._address = (host, port or _DEFAULT_PORTS[parts.scheme])

    def _opened(self) -> cv2.VideoCapture:
        milliseconds = round(1000 * self._timeout)
        options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        if hasattr(cv2, "CAP_PROP_N_THREADS"):  # from OpenCV 4.7 on
            # With several threads, FFmpeg's H.264 decoder holds back one picture per thread: that much latency.
            options += [cv2.CAP_PROP_N_THREADS, 1]
        if _FFMPEG_OPTIONS_VARIABLE in os.environ:  # the user's own
            return cv2.VideoCapture(self._target, self._backend.api, options)
        os.environ[_FFMPEG_OPTIONS_VARIABLE] = _FFMPEG_OPTIONS
        try:
            return cv2.VideoCapture(self._target, self._backend.api, options)
        finally:  # of a file, "nobuffer" would lose the first frame
            del os.environ[_FFMPEG_OPTIONS_VARIABLE]

    def _why_not_opened(self) -> str:
        # OpenCV does not say; a plain connection separates a camera that is away from one that refuses.
        try:
            socket.create_connection(self._address, timeout=self._timeout).close()
        except OSError as error:
            return f"{self._address[0]} port {self._address[1]}: {error.strerror or error}"
        return "the host answers, but not with this stream; check path, user name and password"
