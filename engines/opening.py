"""Which back end runs a bundle here."""

from collections.abc import Callable
from typing import NamedTuple

import structlog

from engines import ort
from engines.bundle import Bundle
from engines.engine import Engine, EngineSettings, OnProgress
from engines.errors import BackendError, EngineError
from engines.selftest import run_selftest
from engines.tensorrt import backend as tensorrt
from engines.tensorrt import gpu, library

log = structlog.get_logger(__name__)


class Backend(NamedTuple):
    """A back end that can run a bundle here."""

    name: str
    version: str
    device: str
    open: Callable[[Bundle, EngineSettings, OnProgress], Engine]


def installed_backends() -> tuple[Backend, ...]:
    """Back ends that can run a bundle here, the fastest first: 'auto' takes the first."""
    onnxruntime = Backend(ort.NAME, ort.VERSION, ort.cpu_name(), _open_onnxruntime)
    if tensorrt_problem() is not None:
        return (onnxruntime,)
    version = f"{library.name()} {library.version()}"
    return (Backend(tensorrt.NAME, version, gpu.describe_gpu().name, tensorrt.open_tensorrt), onnxruntime)


def tensorrt_problem() -> str | None:
    """Why TensorRT cannot run a bundle here; None: it can."""
    try:
        found = gpu.describe_gpu()  # first: where there is none, a large library need not be loaded
        library.trt()
    except BackendError as error:
        return str(error)
    return library.refused_gpu(found.compute_capability)


def open_engine(
    bundle: Bundle, settings: EngineSettings, on_progress: OnProgress = lambda _doing, _share: None
) -> Engine:
    """Open the bundle's scorer on the back end that ``settings`` names, prove it by the self-test, log the choice.

    Args:
        bundle: a verified bundle.
        settings: which back end, and how.
        on_progress: told how a TensorRT plan is built, which takes minutes and happens once.

    Raises:
        BackendError: the back end is not there, refuses the graph or fails.
        SelfTestError: it does not reproduce the stored outputs.
    """
    backends = installed_backends()
    if settings.backend == "auto":
        backend, why = backends[0], "fastest back end here"
    else:
        named = [backend for backend in backends if backend.name == settings.backend]
        if not named:
            raise BackendError(f"engine.backend is {settings.backend}, which cannot run here: {tensorrt_problem()}")
        backend, why = named[0], "engine.backend in the settings"
    engine = backend.open(bundle, settings, on_progress)
    try:
        report = run_selftest(engine, bundle)
    except EngineError:
        engine.close()
        raise
    log.info(
        "engine opened",
        backend=engine.info.backend,
        version=engine.info.backend_version,
        why=why,
        device=engine.info.device,
        precision=engine.info.precision,
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.digest,
        selftest_error=float(f"{report.worst:.1e}"),
        selftest_allowed=report.tolerance,
        selftest_seconds=round(report.seconds, 3),
    )
    return engine


def _open_onnxruntime(bundle: Bundle, settings: EngineSettings, _on_progress: OnProgress) -> Engine:
    return ort.OnnxRuntimeEngine(bundle, settings)
