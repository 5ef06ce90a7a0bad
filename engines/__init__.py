"""Bundles and the engines that run them: what the trainer hands to the station.

::

    bundle = engines.bundle.read_bundle(path)                  verified, or BundleError
    engine = engines.opening.open_engine(bundle, settings)     proved by the self-test, or SelfTestError
    tiler = engines.tiling.Tiler(bundle.manifest.preprocessing)
    image = engines.images.read_image(file)                    BGR
    scores = engine.score(tiler.patches(tiler.prepare(image)))
    scores.anomaly_score(bundle.manifest.lambda_)              one number a patch

Errors are in ``engines.errors``. Nothing is imported here, so that a command which runs no engine does not load one.
"""

import os
import sys

# ONNX Runtime's official builds for Linux report use to their maker over HTTPS and leave a device id in the home
# directory. A camera on a plant's network reports to nobody but its broker. The switch must be set before
# onnxruntime is first imported, hence here, and hence the rule (ruff TID251) that only engines/ort.py imports it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# So does OpenVINO, whose very import makes a client id in the home directory and sends an event to Google Analytics. It
# leaves that to a package of its own and does without where that cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
