"""Calibrations for tests, of the toy bundles."""

from datetime import datetime, timezone

import numpy as np

from engines.bundle import Bundle
from station.calibration import Calibration, CameraView, calibrate_good, summarize

GOOD = np.random.default_rng(0).gumbel(100, 10, 500)


def make_calibration(bundle: Bundle, **changes) -> Calibration:
    """A valid calibration for 1 false alarm in 100 good frames; ``changes`` replace its fields."""
    tail, false_alarms = calibrate_good(GOOD, 1e-2)
    fields = {
        "created_at": datetime(2024, 1, 2, tzinfo=timezone.utc),
        "bundle_name": bundle.manifest.name,
        "bundle_sha256": bundle.digest,
        "lambda_": bundle.manifest.lambda_,
        "frame_score": "max",
        "top_k": 3,
        "camera": CameraView(source="folder", frame_height=64, frame_width=64, roi=None),
        "threshold": false_alarms.threshold,
        "method": "false_alarm_rate",
        "n_good": GOOD.size,
        "n_defect": 0,
        "good": summarize(GOOD),
        "defect": None,
        "tail": tail,
        "false_alarms": false_alarms,
        "separation": None,
        "warnings": (),
    }
    return Calibration(**(fields | changes))
