"""The engine ``tensorrt``: a plan that passed the gate, and the runner that runs it."""

import structlog

from engines.bundle import Bundle
from engines.engine import EngineInfo, EngineSettings, OnProgress, PatchScores, Precision, UInt8Array
from engines.errors import PlanError, SelfTestError
from engines.tensorrt import gpu
from engines.tensorrt.cache import PlanFacts
from engines.tensorrt.gate import judge_plan
from engines.tensorrt.plans import buildable, obtain_plan, open_cache
from engines.tensorrt.runtime import Runner

log = structlog.get_logger(__name__)

NAME = "tensorrt"


class TensorRtEngine:
    """Scores patches with TensorRT on the first GPU. :func:`open_tensorrt` makes one that may serve.

    Args:
        runner: the loaded plan.
        facts: what the plan is.
    """

    def __init__(self, runner: Runner, facts: PlanFacts) -> None:
        self._runner = runner
        self._info = EngineInfo(
            backend=NAME,
            backend_version=f"{facts.device.library} {facts.device.version}",
            device=facts.device.gpu,
            precision=facts.precision,
            build_key=facts.key,
        )

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""
        return self._info

    def score(self, patches: UInt8Array) -> PatchScores:
        """Score uint8 patches (N, P, P, 3), N >= 1; more than the plan takes at once run in turns.

        Raises:
            BackendError: CUDA or TensorRT failed, or the engine is closed.
            ValueError: wrong shape or dtype.
        """
        return self._runner.score(patches)

    def close(self) -> None:
        """Free the GPU's memory. Closing twice is allowed."""
        self._runner.close()


def open_tensorrt(bundle: Bundle, settings: EngineSettings, on_progress: OnProgress) -> TensorRtEngine:
    """The engine of the lowest precision, from the wanted one upwards, that passes the gate on this device.

    Args:
        bundle: a verified bundle.
        settings: ``precision``, ``max_patches``, ``workspace_mib`` and ``cache`` are followed.
        on_progress: told how a build gets on; most openings build nothing.

    Raises:
        BackendError: no TensorRT, no GPU, the graph is refused, or the cache cannot be trusted.
        SelfTestError: not even fp32 passes the gate.
    """
    gpu.describe_gpu()  # before minutes of building
    refusal = ""
    for precision in buildable(bundle, settings.precision):
        engine, refusal = _open(bundle, settings, precision, on_progress)
        if engine is not None:
            return engine
        log.warning("this precision does not serve; the next higher one is tried", precision=precision, reason=refusal)
    raise SelfTestError(
        f"{bundle.path}: on TensorRT not even fp32 scores as the bundle says: {refusal}. Set engine.backend to "
        "onnxruntime"
    )


def _open(
    bundle: Bundle, settings: EngineSettings, precision: Precision, on_progress: OnProgress
) -> tuple[TensorRtEngine | None, str]:
    """An engine of this precision, or None and why the gate refuses it, now or when the plan first ran."""
    plan, entry = obtain_plan(bundle, settings, precision, on_progress)
    verdict = entry.manifest.verdict
    if verdict is not None and not verdict.accepted:
        return None, f"{verdict.words} (found when the plan first ran)"
    try:
        runner = Runner(plan, entry.manifest.facts.max_patches)
    except PlanError as error:
        log.warning("the plan is built again", reason=str(error))
        plan, entry = obtain_plan(bundle, settings, precision, on_progress, rebuild=True)
        runner = Runner(plan, entry.manifest.facts.max_patches)
    manifest = entry.manifest
    engine = TensorRtEngine(runner, manifest.facts)
    if manifest.verdict is not None:
        return engine, ""
    try:
        verdict = judge_plan(engine, bundle, precision)
        open_cache(settings).store(plan, manifest.model_copy(update={"verdict": verdict}))
    except BaseException:
        engine.close()
        raise
    log.info("plan judged", precision=precision, accepted=verdict.accepted, verdict=verdict.words)
    if not verdict.accepted:
        engine.close()
        return None, verdict.words
    return engine, ""
