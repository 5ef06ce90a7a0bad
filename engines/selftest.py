"""The self-test: an engine must reproduce the outputs stored in its bundle, on this device, before it may serve."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from engines.bundle import Bundle
from engines.engine import Engine, PatchScores, Precision
from engines.errors import SelfTestError

OUTPUTS = ("reconstruction_error", "feature_error", "residual")
"""What every scorer returns; one with a locator also returns an ``anomaly_map``."""
_ALL = (*OUTPUTS, "anomaly_map")

# Largest allowed difference from torch's float64, as a share of the output's largest value among the 16 patches.
# fp32: sums of some 10⁴ terms behind some 30 layers lose about two decimal digits of float32's seven, and in which
# order they are added differs between CPUs; measured up to 3e-6 (ONNX Runtime, widths 16 and 64), while a wrong colour
# order, scaling or Resize mode differs by more than 1e-2. fp16: measured up to 1.6e-3 where convolutions add up in fp32
# (ONNX Runtime, four trained models), which not every GPU kernel does. bf16 has three bits less: measured up to 6e-3 in
# the sums and 2e-2 in a pixel (OpenVINO; the bundled model, and untrained ones with a locator). int8: up to 7e-3 in the
# sums, but 0.1 in single pixels of the residual, whose rounding no sum averages out; that int8 still tells good from
# bad is for ranks to show (engines/gate.py).
TOLERANCE: Mapping[Precision, Mapping[str, float]] = MappingProxyType({
    "fp32": dict.fromkeys(_ALL, 1e-4),
    "fp16": dict.fromkeys(_ALL, 2e-2),
    "bf16": {"reconstruction_error": 3e-2, "feature_error": 3e-2, "residual": 0.1, "anomaly_map": 0.1},
    "int8": {"reconstruction_error": 5e-2, "feature_error": 5e-2, "residual": 0.3, "anomaly_map": 0.3},
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """What a self-test measured.

    Attributes:
        errors: largest difference of each output, as a share of the output's largest value.
        tolerances: what the engine's precision allows, by output.
        seconds: how long it took.
    """

    errors: Mapping[str, float]
    tolerances: Mapping[str, float]
    seconds: float

    @property
    def worst_output(self) -> str:
        """The output that comes nearest to what is allowed."""
        return max(self.errors, key=lambda name: self.errors[name] / self.tolerances[name])

    @property
    def worst(self) -> float:
        """The error of the worst output."""
        return self.errors[self.worst_output]

    @property
    def tolerance(self) -> float:
        """What is allowed for the worst output."""
        return self.tolerances[self.worst_output]


def run_selftest(engine: Engine, bundle: Bundle) -> SelfTestReport:
    """Score the bundle's 16 patches and compare with the stored outputs.

    They are scored twice: all at once; then one alone and the other 15, each one place further front. The sizes 1, 15
    and 16 show that the number of patches is really dynamic, the other places that no result is left over from before.

    Raises:
        SelfTestError: an output differs by more than the precision allows, or is not finite.
        BackendError: the engine failed.
    """
    info = engine.info
    tolerances = TOLERANCE[info.precision]
    errors = dict.fromkeys((tensor.name for tensor in bundle.manifest.outputs), 0.0)
    started = time.perf_counter()
    for part in (slice(None), slice(1), slice(1, None)):
        scores = engine.score(bundle.selftest.patches[part])
        for name in errors:
            errors[name] = max(errors[name], _relative_error(scores, bundle, name, part))
    for name, error in errors.items():
        if error > tolerances[name]:
            raise SelfTestError(
                f"self-test failed: {info.backend} {info.backend_version} ({info.precision}, {info.device}) gives a "
                f"{name} that differs by {error:.1e} of its largest value from the one stored in {bundle.path}; "
                f"{tolerances[name]:.0e} is allowed. This engine must not serve: choose another engine.backend, or "
                "another version of it"
            )
    return SelfTestReport(errors=errors, tolerances=tolerances, seconds=time.perf_counter() - started)


def _relative_error(scores: PatchScores, bundle: Bundle, name: str, part: slice) -> float:
    expected = getattr(bundle.selftest.expected, name)
    found = getattr(scores, name)
    if found is None or found.shape != expected[part].shape or not np.isfinite(found).all():
        return math.inf
    difference = float(np.abs(found.astype(np.float64) - expected[part]).max())
    largest = float(np.abs(expected).max())
    if largest == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / largest
