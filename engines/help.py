"""Which page of the documentation explains an error: the one place that says so, for ``station`` and ``station-train``.

Errors go by the names of their classes, so that nothing needs to be imported for it.
"""

import re

ERRORS = "docs/errors.md"
SECTIONS = {
    "SettingsError": "settings",
    "BundleError": "bundle",
    "SelfTestError": "self-test",
    "PlanError": "tensorrt-plan",
    "BackendError": "engine",
    "EngineError": "engine",
    "CalibrationError": "calibration",
    "CameraError": "camera",
    "BrokerError": "broker",
    "StateError": "state-folder",
    "OutputError": "writing-files",
    "ImageError": "images",
    "DashboardError": "dashboard",
    "DemoError": "demo",
    "DataError": "training-images",
    "CheckpointError": "checkpoint",
    "DivergedError": "diverged",
}
BROKER_PAGE = f"{ERRORS}#{SECTIONS['BrokerError']}"
SETTINGS = "docs/settings.md"
_KEY = re.compile(
    r"^  (mqtt\.tls|camera\.roi|"
    r"station|mqtt|log|camera|engine|judge|alerts|outbox|health|commands|metrics|dashboard)\.\w",
    re.MULTILINE,
)
CAMERA_FAULTS = "docs/camera-faults.md"
REASONS = "docs/reliability.md#states-and-reasons"


def page_of(error: BaseException) -> str | None:
    """Page and section that explain an error; None where its message says all there is to say."""
    names = [kind.__name__.lstrip("_") for kind in type(error).__mro__]
    if "SettingsError" in names and (key := _KEY.search(str(error))):
        return f"{SETTINGS}#{key.group(1).replace('.', '')}"
    section = next((SECTIONS[name] for name in names if name in SECTIONS), None)
    return f"{ERRORS}#{section}" if section else None


def page_of_reason(reason: str) -> str:
    """Page that explains a reason (``code: words``) of a station's status."""
    return CAMERA_FAULTS if reason.startswith("camera-") else REASONS


def explained(error: BaseException) -> str:
    """The error's message, and as its last line where to read more."""
    page = page_of(error)
    return f"{error}\nsee {page}" if page else str(error)
