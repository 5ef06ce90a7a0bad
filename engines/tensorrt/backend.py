"""The engine ``tensorrt``: a plan that passed the gate, and the runner that runs it."""

from engines.bundle import Bundle
from engines.cache import PlanFacts, open_cache
from engines.engine import EngineInfo, EngineSettings, OnProgress, PatchScores, UInt8Array
from engines.errors import PlanError
from engines.gate import open_lowest
from engines.tensorrt import gpu
from engines.tensorrt.plans import buildable, obtain_plan
from engines.tensorrt.runtime import Runner

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
            device=facts.device.name,
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
    return open_lowest(
        bundle,
        buildable(bundle, settings.precision),
        open_cache(settings),
        lambda precision, rebuild: obtain_plan(bundle, settings, precision, on_progress, rebuild=rebuild),
        _load,
    )


def _load(plan: bytes, facts: PlanFacts) -> TensorRtEngine:
    if facts.max_patches is None:
        raise PlanError("the plan is not TensorRT's")
    return TensorRtEngine(Runner(plan, facts.max_patches), facts)
