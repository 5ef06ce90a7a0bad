import engines  # noqa: F401 - turns ONNX Runtime's telemetry off before any test imports it
