from hypothesis import settings

import engines  # noqa: F401 - turns ONNX Runtime's telemetry off before any test imports it

# No deadline: tests never judge by the clock, which on a shared machine says nothing.
settings.register_profile("cbigan-station", deadline=None)
settings.load_profile("cbigan-station")
