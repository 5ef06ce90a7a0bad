"""Which back end runs a bundle here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

import structlog

from engines import ort
from engines.bundle import Bundle
from engines.cpu import cpu_name
from engines.engine import Engine, EngineSettings, OnProgress
from engines.errors import BackendError, EngineError
from engines.openvino import backend as openvino
from engines.openvino import library as openvino_library
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


def installed_backends() -> Iterator[Backend]:
    """Back ends that can run a bundle here, the fastest first: 'auto' takes the first."""
    for find in BACKENDS.values():
        with suppress(BackendError):
            yield find()


def tensorrt_problem() -> str | None:
    """Why TensorRT cannot run a bundle here; None: it can."""
    try:
        _find_tensorrt()
    except BackendError as error:
        return str(error)
    return None


def open_engine(
    bundle: Bundle, settings: EngineSettings, on_progress: OnProgress = lambda _doing, _share: None
) -> Engine:
    """Open the bundle's scorer on the back end that ``settings`` names, prove it by the self-test, log the choice.

    Args:
        bundle: a verified bundle.
        settings: which back end, and how.
        on_progress: told how a plan is built, which with TensorRT takes minutes and happens once.

    Raises:
        BackendError: the back end is not there, refuses the graph or fails.
        SelfTestError: it does not reproduce the stored outputs.
    """
    if settings.backend == "auto":
        backend, why = next(iter(installed_backends())), "fastest back end here"
    else:
        try:
            backend, why = BACKENDS[settings.backend](), "engine.backend in the settings"
        except BackendError as error:
            raise BackendError(f"engine.backend is {settings.backend}, which cannot run here: {error}") from error
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


def _find_tensorrt() -> Backend:
    found = gpu.describe_gpu()  # first: where there is none, a large library need not be loaded
    if (refusal := library.refused_gpu(found.compute_capability)) is not None:
        raise BackendError(refusal)
    version = f"{library.name()} {library.version()}"
    return Backend(tensorrt.NAME, version, found.name, tensorrt.open_tensorrt)


def _find_openvino() -> Backend:
    return Backend(openvino.NAME, openvino_library.version(), cpu_name(), openvino.open_openvino)


def _find_onnxruntime() -> Backend:
    return Backend(ort.NAME, ort.VERSION, cpu_name(), _open_onnxruntime)


def _open_onnxruntime(bundle: Bundle, settings: EngineSettings, _on_progress: OnProgress) -> Engine:
    return ort.OnnxRuntimeEngine(bundle, settings)


BACKENDS: Mapping[str, Callable[[], Backend]] = MappingProxyType(
    {tensorrt.NAME: _find_tensorrt, openvino.NAME: _find_openvino, ort.NAME: _find_onnxruntime}
)
"""What finds each back end, the fastest first; a BackendError says why it cannot run a bundle here."""
