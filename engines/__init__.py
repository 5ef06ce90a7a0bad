"""Bundles and the engines that run them: what the trainer hands to the station."""

import os

# ONNX Runtime's official builds for Linux report use to their maker over HTTPS and leave a device id in the home
# directory. A camera on a plant's network reports to nobody but its broker. The switch must be set before
# onnxruntime is first imported, hence here, and hence the rule (ruff TID251) that only engines/ort.py imports it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
