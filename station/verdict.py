"""The threshold that frames are judged by, and where it comes from."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from engines.bundle import Bundle
from engines.tiling import Tiler
from station.calibration import Calibration, load_calibration
from station.settings import Settings


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a frame's score is compared with.

    Attributes:
        threshold: a frame that scores above it is anomalous.
        calibration: None for a threshold from the settings without one.
        source: names what set the threshold before any command did; another source, another id.
    """

    threshold: float
    calibration: Calibration | None
    source: str

    @property
    def median_good(self) -> float | None:
        """Median score of good frames; None without a calibration."""
        return self.calibration.good.median if self.calibration else None

    @property
    def calibrated_at(self) -> datetime | None:
        """When the threshold was calibrated; None for one from the settings."""
        return self.calibration.created_at if self.calibration else None


def read_verdict(settings: Settings, bundle: Bundle) -> Verdict:
    """The threshold from the settings, else from the calibration.

    Raises:
        CalibrationError: the file is missing, damaged or was made for another bundle.
    """
    calibration = load_calibration(settings.calibration, bundle, settings.judge) if settings.calibration else None
    if settings.judge.threshold is not None:
        source = f"judge.threshold for bundle {bundle.digest[:16]}"
        return Verdict(settings.judge.threshold, calibration, source)
    if calibration is None:
        raise ValueError("neither judge.threshold nor a calibration")  # Settings refuses this
    digest = hashlib.sha256(calibration.model_dump_json(by_alias=True).encode()).hexdigest()
    return Verdict(calibration.threshold, calibration, f"calibration {digest[:16]}")


def make_tiler(settings: Settings, bundle: Bundle) -> Tiler:
    """The tiler for this bundle and the camera's region of interest."""
    roi = settings.camera.roi
    return Tiler(bundle.manifest.preprocessing, roi.box if roi else None)
