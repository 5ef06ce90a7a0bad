"""What commands need to know of frames: the camera's first, and sizes on the command line."""

import re

import typer

from station.camera import CameraError, Capture, EndOfStream, redact_url
from station.frames import Frame
from station.settings import CameraSettings


def first_frame(camera: CameraSettings) -> Frame:
    """One frame of the camera.

    Raises:
        CameraError: none came; says why.
    """
    with Capture(camera) as capture:
        try:
            # Twice: opening takes time of its own, and a second attempt may be what helps.
            frame = capture.get(2 * camera.read_timeout)
        except EndOfStream:
            frame = None
        if frame is None:
            raise CameraError(f"{redact_url(camera.url)}: {capture.stats.fault or 'no frame'}")
        return frame


def parse_size(text: str, option: str) -> tuple[int, int]:
    """(height, width) of ``WIDTHxHEIGHT``.

    Raises:
        typer.BadParameter: it is none; names the option.
    """
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT, such as 1280x1024", param_hint=option)
    return int(match[2]), int(match[1])
