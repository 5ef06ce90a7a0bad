"""What a camera is to the rest of the station: something that is opened, read and closed."""

import re
from typing import NamedTuple, Protocol

from engines.engine import UInt8Array


class CameraError(Exception):
    """The camera gives no picture; the message says why and what to do, without the URL's credentials.

    Attributes:
        code: stands before the message where the fault is reported (docs/camera-faults.md).
    """

    code = "camera-failed"


class UnpluggedError(CameraError):
    """It cannot be opened, or has hung up: unplugged, switched off, another program has it, wrong log-in."""

    code = "camera-unplugged"


class StalledError(CameraError):
    """It is there and sends nothing."""

    code = "camera-stalled"


class EndOfStream(Exception):  # noqa: N818 - like StopIteration, an end and not an error
    """The source is over: the last frame of a video, folder or demo has been handed out."""


class Picture(NamedTuple):
    """One picture, as it leaves the source.

    Attributes:
        image: uint8 (H, W, 3), BGR; the reader owns it.
        name: where it came from, if that has a name (a file of ``folder:``), else "".
        damage: what of it did not arrive, in words; None: it is whole.
    """

    image: UInt8Array
    name: str = ""
    damage: str | None = None


class Source(Protocol):
    """Where pictures come from. ``Capture`` calls all three from one thread at a time."""

    @property
    def live(self) -> bool:
        """True: a camera, that may come back after an error. False: it has an end, and an error is final."""

    def open(self) -> None:
        """Make ready to read, from the beginning. Called again after ``close``, to reconnect or to loop.

        Raises:
            CameraError: it cannot be opened.
        """

    def read(self) -> Picture | None:
        """Wait for the next picture; None when there are no more (a live camera is then opened again).

        Raises:
            CameraError: the camera is lost, or what was read is no picture.
        """

    def close(self) -> None:
        """Free the device. Closing twice, or before ``open``, is allowed."""


_HIDDEN = "***"
_USERINFO = re.compile(r"://.*@", re.DOTALL)
_SECRET_VALUE = re.compile(
    r"""(?ix)
    ( [\w-]*
      (?: user | usr | login | pass | pwd | -pw | -id | token | secret | auth | (?:api|access)[-_]?key )
      [\w-]* \s*=\s* )
    (?: "[^"]*" | '[^']*' | [^&;\s"']+ )
    """
)


def redact_url(url: str) -> str:
    """The URL with every credential hidden: for logs, error messages and the ``info`` topic.

    Hides user name and password before the host, query parameters and GStreamer properties whose names look like a
    secret (``?pwd=…``, ``user-pw=…``). Hides too much rather than too little: all up to the last ``@``, since a
    password may itself hold ``@`` or ``/``.
    """
    return _SECRET_VALUE.sub(rf"\g<1>{_HIDDEN}", _USERINFO.sub(f"://{_HIDDEN}@", url))
