"""A real MJPEG-over-HTTP camera on localhost that misbehaves on command: silent, frozen, cut short, spoilt, gone."""

import base64
import contextlib
import itertools
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import final
from urllib.parse import quote

import cv2
import numpy as np

BOUNDARY = "frame"


def numbered_picture(number: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """A BGR picture that tells its number: a white bar on grey, in one of 16 columns."""
    image = np.full((*size, 3), 60, np.uint8)
    width = size[1] // 16
    at = number % 16
    image[:, at * width : (at + 1) * width] = 230
    return image


def number_of(image: np.ndarray) -> int:
    """The number (modulo 16) that ``numbered_picture`` drew, read back through compression."""
    columns = image.mean(axis=(0, 2)).reshape(16, -1).mean(axis=1)
    return int(columns.argmax())


@final
class MjpegServer:
    """``with MjpegServer() as camera: cv2.VideoCapture(camera.url)``.

    No two pictures are the same, as with any camera: somewhere a block of 8 x 8 pixels is a little brighter.

    Attributes:
        connections: how many clients have asked for the stream so far.
        spoil: what is wrong with the camera: makes the picture that is sent from the healthy one and its number.
        lost: share of each JPEG that never arrives, while the stream goes on.
    """

    def __init__(
        self,
        *,
        fps: float = 30,
        picture: Callable[[int], np.ndarray] = numbered_picture,
        port: int = 0,
        credentials: tuple[str, str] | None = None,
        content_length: bool = True,
    ) -> None:
        self.fps = fps
        self.picture = picture
        self.connections = 0
        self.spoil: Callable[[np.ndarray, int], np.ndarray] | None = None
        self.lost = 0.0
        self._frozen: bytes | None = None
        self._last = b""
        self._credentials = credentials
        self._content_length = content_length
        self._flowing = threading.Event()
        self._flowing.set()
        self._epoch = 0  # raised to end every connection of before
        self._cut = False
        self._stopped = threading.Event()
        self._numbers = itertools.count()
        self._address = ("127.0.0.1", port)
        self._server = self._listening()

    def _listening(self) -> "_Server":
        server = _Server(self._address, self._handler())
        self._address = ("127.0.0.1", server.server_address[1])
        self._thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        return server

    @property
    def port(self) -> int:
        return self._address[1]

    @property
    def url(self) -> str:
        user = ":".join(quote(part, safe="") for part in self._credentials) + "@" if self._credentials else ""
        return f"http://{user}127.0.0.1:{self.port}/stream.mjpg"

    def stall(self) -> None:
        """Send nothing more, but keep every connection open."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def freeze(self) -> None:
        """Send the last picture again and again."""
        self._frozen = self._last

    def thaw(self) -> None:
        self._frozen = None

    def drop(self, *, in_mid_picture: bool = False) -> None:
        """Hang up on every client; half-way through a JPEG if asked to."""
        self._cut = in_mid_picture
        self._epoch += 1

    def unplug(self) -> None:
        """Hang up and listen no more."""
        self.drop()
        self._close()

    def plug_in(self) -> None:
        """Listen again, on the same port."""
        self._server = self._listening()
        self._thread.start()

    def __enter__(self) -> "MjpegServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._flowing.set()
        self._epoch += 1
        self._close()

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
                """Quiet."""

            def do_GET(self) -> None:
                if not camera._allowed(self.headers.get("Authorization")):
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
                self.end_headers()
                with contextlib.suppress(OSError):  # the client has gone
                    camera._stream(self.wfile)

        return Handler

    def _allowed(self, authorization: str | None) -> bool:
        if self._credentials is None:
            return True
        expected = base64.b64encode(":".join(self._credentials).encode()).decode()
        return authorization == f"Basic {expected}"

    def _stream(self, wire: socketserver._SocketWriter) -> None:
        epoch = self._epoch
        while True:
            jpeg = self._next()
            length = f"Content-Length: {len(jpeg)}\r\n" if self._content_length else ""
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode()
            self._flowing.wait()
            if epoch != self._epoch:
                if self._cut:
                    wire.write(head + jpeg[: len(jpeg) // 2])
                return
            wire.write(head + jpeg + b"\r\n")
            self._stopped.wait(1 / self.fps)

    def _next(self) -> bytes:
        if self._frozen is not None:
            return self._frozen
        number = next(self._numbers)
        image = _living(self.picture(number), number)
        if self.spoil is not None:
            image = self.spoil(image, number)
        jpeg = self._last = cv2.imencode(".jpg", image)[1].tobytes()
        return jpeg[: len(jpeg) - round(self.lost * len(jpeg))]


def _living(image: np.ndarray, number: int) -> np.ndarray:
    rows, columns = image.shape[0] // 8, image.shape[1] // 8
    y, x = 8 * (number * 7 % rows), 8 * (number * 5 % columns)
    living = image.copy()
    living[y : y + 8, x : x + 8] = np.minimum(living[y : y + 8, x : x + 8], 252) + 3
    return living


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True  # so that a test can bring the camera back on the same port
