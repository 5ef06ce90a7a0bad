"""The camera: sources by URL, and the thread that reads them."""

from station.camera.source import CameraError, EndOfStream, Picture, Source, redact_url

__all__ = ["CameraError", "EndOfStream", "Picture", "Source", "redact_url"]
