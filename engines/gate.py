"""The accuracy gate: a plan serves only if it scores as its precision promises, and ranks patches as fp32 does.

Every back end that can compute in several precisions goes through it, by :func:`open_lowest`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from engines.bundle import Bundle
from engines.cache import Entry, PlanCache, PlanFacts, Verdict
from engines.engine import Engine, EngineSettings, Float32Array, Precision, UInt8Array
from engines.errors import PlanError, SelfTestError
from engines.ort import OnnxRuntimeEngine
from engines.selftest import run_selftest

log = structlog.get_logger(__name__)

# Least rank correlation (Spearman) with fp32. A threshold only asks which of two patches is worse, so ranks are what
# a lower precision must keep; how far scores move is the self-test's matter.
LEAST_RANK_CORRELATION: Mapping[Precision, float] = MappingProxyType(
    {"fp32": 0.999, "fp16": 0.999, "bf16": 0.995, "int8": 0.98}
)

E = TypeVar("E", bound=Engine)


def open_lowest(
    bundle: Bundle,
    precisions: Sequence[Precision],
    plans: PlanCache,
    obtain: Callable[[Precision, bool], tuple[bytes, Entry]],
    load: Callable[[bytes, PlanFacts], E],
) -> E:
    """The engine of the first precision that passes the gate on this device. Verdicts are kept beside the plans.

    Args:
        bundle: a verified bundle.
        precisions: what to try, lowest first.
        plans: the cache that ``obtain`` takes plans from.
        obtain: a plan of this precision, from the cache or built; where the second argument is True, a new one.
        load: makes an engine of a plan; a PlanError has it built again, once.

    Raises:
        BackendError: ``obtain`` or ``load`` failed, or the cache cannot be trusted.
        SelfTestError: none passes the gate.
    """
    refusal = ""
    for precision in precisions:
        engine, refusal = _open(bundle, precision, plans, obtain, load)
        if engine is not None:
            return engine
        log.warning("this precision does not serve; the next higher one is tried", precision=precision, reason=refusal)
    raise SelfTestError(
        f"{bundle.path}: not even {precisions[-1]} scores as the bundle says: {refusal}. Set engine.backend to "
        "onnxruntime"
    )


def _open(
    bundle: Bundle,
    precision: Precision,
    plans: PlanCache,
    obtain: Callable[[Precision, bool], tuple[bytes, Entry]],
    load: Callable[[bytes, PlanFacts], E],
) -> tuple[E | None, str]:
    """An engine of this precision, or None and why the gate refuses it, now or when the plan first ran."""
    plan, entry = obtain(precision, False)
    verdict = entry.manifest.verdict
    if verdict is not None and not verdict.accepted:
        return None, f"{verdict.words} (found when the plan first ran)"
    try:
        engine = load(plan, entry.manifest.facts)
    except PlanError as error:
        log.warning("the plan is built again", reason=str(error))
        plan, entry = obtain(precision, True)
        engine = load(plan, entry.manifest.facts)
    if entry.manifest.verdict is not None:
        return engine, ""
    try:
        verdict = judge_plan(engine, bundle, precision)
        plans.store(plan, entry.manifest.model_copy(update={"verdict": verdict}))
    except BaseException:
        engine.close()
        raise
    log.info("plan judged", precision=precision, accepted=verdict.accepted, verdict=verdict.words)
    if not verdict.accepted:
        engine.close()
        return None, verdict.words
    return engine, ""


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
