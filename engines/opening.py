"""Which back end runs a bundle here."""

from collections.abc import Callable
from typing import NamedTuple

import structlog

from engines import ort
from engines.bundle import Bundle
from engines.engine import Engine, EngineSettings
from engines.errors import EngineError
from engines.selftest import run_selftest

log = structlog.get_logger(__name__)


class Backend(NamedTuple):
    """A back end that is installed here."""

    name: str
    version: str
    device: str
    open: Callable[[Bundle, EngineSettings], Engine]


def installed_backends() -> tuple[Backend, ...]:
    """Back ends installed here, the fastest first: 'auto' takes the first."""
    return (Backend(ort.NAME, ort.VERSION, ort.cpu_name(), ort.OnnxRuntimeEngine),)


def open_engine(bundle: Bundle, settings: EngineSettings) -> Engine:
    """Open the bundle's scorer on the back end that ``settings`` names, prove it by the self-test, log the choice.

    Raises:
        BackendError: the back end refuses the graph or fails.
        SelfTestError: it does not reproduce the stored outputs.
    """
    backends = installed_backends()
    if settings.backend == "auto":
        backend, why = backends[0], "fastest installed back end"
    else:
        backend = next(backend for backend in backends if backend.name == settings.backend)
        why = "engine.backend in the settings"
    engine = backend.open(bundle, settings)
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
