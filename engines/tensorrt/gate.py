"""The accuracy gate: a plan serves only if it scores as its precision promises, and ranks patches as fp32 does."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from engines.bundle import Bundle
from engines.engine import Engine, EngineSettings, Float32Array, Precision, UInt8Array
from engines.errors import SelfTestError
from engines.ort import OnnxRuntimeEngine
from engines.selftest import run_selftest
from engines.tensorrt.cache import Verdict

# Least rank correlation (Spearman) with fp32. A threshold only asks which of two patches is worse, so ranks are what
# a lower precision must keep; how far scores move is the self-test's matter.
LEAST_RANK_CORRELATION: Mapping[Precision, float] = MappingProxyType({"fp32": 0.999, "fp16": 0.999, "int8": 0.98})


def judge_plan(engine: Engine, bundle: Bundle, precision: Precision) -> Verdict:
    """Run the self-test, and compare ranks on the bundle's calibration patches with ONNX Runtime's in fp32.

    Bundles without calibration patches are judged by the self-test's 16.

    Raises:
        BackendError: an engine failed.
    """
    try:
        report = run_selftest(engine, bundle)
    except SelfTestError as error:
        return Verdict(accepted=False, words=str(error))
    patches = bundle.calibration_patches()
    kind = "calibration"
    if patches is None:
        patches, kind = bundle.selftest.patches, "self-test"
    lambda_ = bundle.manifest.lambda_
    correlation = rank_correlation(engine.score(patches).anomaly_score(lambda_), _reference(bundle, patches))
    least = LEAST_RANK_CORRELATION[precision]
    accepted = correlation >= least
    return Verdict(
        accepted=accepted,
        selftest_error=report.worst,
        rank_correlation=correlation,
        words=f"self-test differs by {report.worst:.1e} of {report.tolerance:.0e} allowed; ranks {len(patches)} {kind} "
        f"patches {'like' if accepted else 'unlike'} fp32 (Spearman {correlation:.5f}, at least {least} is needed)",
    )


def rank_correlation(a: Float32Array, b: Float32Array) -> float:
    """Spearman's correlation of two arrays (N,), ties sharing the mean of their ranks; 1.0 where both are constant.

    Not finite numbers correlate with nothing: 0.0.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    spread = float(np.sqrt((x * x).sum() * (y * y).sum()))
    if spread == 0.0:
        return float(not x.any() and not y.any())
    return float((x * y).sum() / spread)


def _ranks(values: Float32Array) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean_rank: NDArray[np.float64] = last - (count - 1) / 2
    return mean_rank[place]


def _reference(bundle: Bundle, patches: UInt8Array) -> Float32Array:
    engine = OnnxRuntimeEngine(bundle, EngineSettings())
    try:
        return engine.score(patches).anomaly_score(bundle.manifest.lambda_)
    finally:
        engine.close()
