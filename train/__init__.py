"""Workstation half: trains CBiGAN models on defect-free images, evaluates them and exports bundles."""

import engines  # noqa: F401 - turns ONNX Runtime's telemetry off before train.graph imports it
