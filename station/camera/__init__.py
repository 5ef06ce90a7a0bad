"""The camera: sources by URL, and the thread that reads them."""

from station.camera.capture import Capture, CaptureStats
from station.camera.source import CameraError, EndOfStream, Picture, Source, redact_url

__all__ = ["CameraError", "Capture", "CaptureStats", "EndOfStream", "Picture", "Source", "redact_url"]
