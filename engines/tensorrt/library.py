"""Finds TensorRT or TensorRT-RTX. All that differs between their versions is in this module.

Checked against the source of NVIDIA's Python bindings at 8.6.1, 10.3, 10.12, 10.16, 11.0 and 11.1, and run with
TensorRT-RTX 1.7:

=========================  =====  ======  =======  ======  =======
what differs               8.6    10.x    11.x     RTX 1   here
=========================  =====  ======  =======  ======  =======
flag EXPLICIT_BATCH        must   no use  gone     gone    :func:`network_flags`
types of layers            flags  flags   graph    graph   :func:`typed_by_graph`
node and operator in a     no     yes     yes      yes     :func:`describe_parser_error`
parser's error
IProgressMonitor           no     yes     yes      yes     :func:`make_progress_monitor`
timing cache               yes    yes     yes      no use  :func:`has_timing_cache`
compiles kernels           built  built   built    loaded  :func:`create_context`
says if it can be recorded no     no      may be   yes     :func:`can_record`
runs on each of its GPUs   yes    yes     yes      no      :func:`refused_gpu`
=========================  =====  ======  =======  ======  =======
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import structlog

from engines.errors import BackendError

log = structlog.get_logger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx")  # JetPack's own comes first
OLDEST = (8, 6)

INSTALL = (
    "JetPack brings TensorRT along (make the virtual environment with --system-site-packages); elsewhere "
    "`pip install 'cbigan-station[tensorrt]'` installs TensorRT-RTX"
)


def trt() -> Any:  # noqa: ANN401 - a module; NVIDIA's stubs are not valid Python, and no version's would fit all
    """NVIDIA's module, ``tensorrt`` if it is there, else ``tensorrt_rtx``.

    Raises:
        BackendError: neither can be used; says why and what to install.
    """
    module, problem = _find()
    if module is None:
        raise BackendError(f"TensorRT cannot be used: {problem}. {INSTALL}")
    return module


def problem() -> str | None:
    """Why there is no TensorRT here, in a few words; None: there is."""
    return _find()[1]


def is_rtx() -> bool:
    """Whether it is TensorRT-RTX, which compiles kernels when a plan is loaded and not when it is built."""
    return str(trt().__name__) == "tensorrt_rtx"


def name() -> str:
    """What NVIDIA calls it."""
    return "TensorRT-RTX" if is_rtx() else "TensorRT"


def version() -> str:
    """Full version, such as 10.3.0 or 1.7.1.116. Plans fit no other."""
    return str(trt().__version__)


def refused_gpu(compute_capability: tuple[int, int]) -> str | None:
    """Why no plan runs on a GPU of this compute capability, in a few words; None: as far as is known, one does.

    RTX knows the GPUs of desktops by name and refuses to load a plan on any other that is not newer than they: on an
    H100 (9.0) or an Orin (8.7). Turing (7.5) it knows, but a plan that names no GPU, as ours, leaves it out, and for it
    RTX multiplies no matrices in fp32.
    """
    if not is_rtx():
        return None
    names = trt().ComputeCapability.__members__
    known = sorted(divmod(int(name[2:]), 10) for name in names if name.startswith("SM") and name != "SM75")
    if compute_capability in known or compute_capability > known[-1]:
        return None
    here, *others = (f"{major}.{minor}" for major, minor in (compute_capability, *known))
    return (
        f"{name()} {version()} runs no plan of ours on GPUs of compute capability {here}, only of {', '.join(others)} "
        "and newer. NVIDIA's TensorRT, which goes before it, may: `pip install tensorrt`"
    )


def network_flags() -> int:
    """Flags for ``create_network``: dynamic shapes, which 8.x has to be asked for."""
    flags = getattr(trt().NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    return 0 if flags is None or _numbers(version())[0] >= 10 else 1 << int(flags)


def typed_by_graph() -> bool:
    """Whether the graph's own types decide, so that fp16 needs an fp16 graph; otherwise the builder's flags do."""
    return is_rtx() or not hasattr(trt().BuilderFlag, "FP16")


def set_precision(config: Any, network: Any, precision: str) -> None:  # noqa: ANN401
    """Allow what ``precision`` ("fp32", "fp16", "int8") needs in an ``IBuilderConfig`` and an ``INetworkDefinition``.

    fp32 means 24 bits: TensorRT's TF32, on by default, keeps 11 and would not pass fp32's self-test. Where flags
    decide, sums stay in fp32 whatever the flags: those of eq. 8 have up to 49,152 terms of up to 2 each, and fp16 ends
    at 65,504. The fp16 graphs are exported with such sums.
    """
    module = trt()
    flag = module.BuilderFlag
    if precision == "fp32":
        config.clear_flag(flag.TF32)
    if typed_by_graph() or precision == "fp32":
        return
    config.set_flag(flag.FP16)  # for int8 too: what its graph leaves unquantized
    if precision == "int8":
        config.set_flag(flag.INT8)
    config.set_flag(flag.OBEY_PRECISION_CONSTRAINTS)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == module.LayerType.REDUCE:
            layer.precision = module.DataType.FLOAT
            layer.set_output_type(0, module.DataType.FLOAT)


def describe_parser_error(error: Any) -> str:  # noqa: ANN401
    """One ``IParserError``: node, operator and reason."""
    where = f"node {error.node()}"
    if hasattr(error, "node_name"):
        where = f"node {error.node()} ({error.node_operator() or 'graph'} {error.node_name()!r})"
    return f"{where}: {' '.join(str(error.desc()).split())}"


def has_timing_cache() -> bool:
    """Whether measured kernel times can be kept for the next build; RTX measures when a plan is loaded."""
    return not is_rtx()


def create_context(engine: Any) -> Any | None:  # noqa: ANN401
    """An execution context with memory of its own, enough for the profile's largest shape; None: it failed.

    RTX compiles kernels for every new shape. By default it does so in the background and lets general ones work
    meanwhile: scores would change in their last digits some time after the start, and a CUDA graph might hold the slow
    ones for ever. So the first run of a shape waits for them.
    """
    if not is_rtx():
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt().DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def can_record(context: Any, stream: int) -> bool:  # noqa: ANN401
    """Whether a run of ``context`` may be recorded as a CUDA graph; where the version cannot tell, one has to try."""
    ask = getattr(context, "is_stream_capturable", None)
    return ask is None or bool(ask(stream))


def make_progress_monitor(
    phase_start: Callable[[str, str | None, int], None],
    step_complete: Callable[[str, int], bool],
    phase_finish: Callable[[str], None],
) -> Any | None:  # noqa: ANN401
    """An ``IProgressMonitor`` of three functions, as NVIDIA documents them; None where the version has none.

    The functions are called from the builder's threads. ``step_complete`` returns False to cancel the build.
    """
    base = getattr(trt(), "IProgressMonitor", None)
    if base is None:
        return None
    methods = {
        "phase_start": lambda _, name, parent, steps: phase_start(name, parent, steps),
        "step_complete": lambda _, name, step: step_complete(name, step),
        "phase_finish": lambda _, name: phase_finish(name),
    }
    return type("ProgressMonitor", (base,), methods)()


@dataclass(slots=True)
class Transcript:
    """What TensorRT said meanwhile.

    Attributes:
        errors: errors, oldest first, each in one line.
        layers: the plan's layers, one line each, as the builder lists them at its end.
    """

    errors: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def hear(self, severity: str, text: str) -> None:
        """Keep what is worth keeping of one message."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(" ".join(text.split()))
        heading, _, rest = text.partition("\n")
        if heading in ("Layers:", "Engine Layer Information:"):
            self.layers += [line for line in rest.splitlines() if line.startswith(("Name:", "Layer("))]

    def reason(self) -> str:
        """The errors, or that there were none."""
        return "; ".join(self.errors)[:1000] or "it gave no reason"


_listening: list[Transcript] = []


@contextmanager
def transcript() -> Iterator[Transcript]:
    """Keep what :func:`logger` hears while in the block, to tell it when something fails."""
    heard = Transcript()
    _listening.append(heard)
    try:
        yield heard
    finally:
        _listening.remove(heard)


def logger() -> Any:  # noqa: ANN401
    """The ``ILogger`` for builders and runtimes; one a process, as TensorRT itself keeps only the first."""
    return _make_logger(trt())


@cache
def _make_logger(module: Any) -> Any:  # noqa: ANN401
    severe = module.ILogger.Severity.WARNING

    def hear(_: object, severity: Any, text: str) -> None:  # noqa: ANN401
        for listener in _listening:
            listener.hear(severity.name, text)
        if int(severity) <= int(severe):
            log.debug("TensorRT says", severity=severity.name, text=text)

    return type("Logger", (module.ILogger,), {"log": hear})()


@cache
def _find() -> tuple[Any | None, str | None]:
    problems = []
    for module_name in MODULES:
        module, found = _import(module_name)
        if found is None:
            return module, None
        problems.append(f"{module_name} {found}")
    return None, "; ".join(problems)


def _import(module_name: str) -> tuple[Any | None, str | None]:
    """The module, or what is wrong with it."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        return None, "is not installed" if error.name == module_name else f"cannot be loaded ({error})"
    except (ImportError, OSError, RuntimeError) as error:  # a missing CUDA library, most often
        return None, f"cannot be loaded ({error})"
    return module, _unusable(module)


def _unusable(module: Any) -> str | None:  # noqa: ANN401
    # Left-overs of a package and type stubs make an importable folder with nothing in it.
    if not hasattr(module, "Builder") or not hasattr(module, "__version__"):
        return "is an empty folder"
    if module.__name__ == "tensorrt" and _numbers(module.__version__)[:2] < OLDEST:
        return f"{module.__version__} is older than {'.'.join(map(str, OLDEST))}"
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
