"""From an ONNX graph to a TensorRT plan, and what is in the plan."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, get_args

from engines.cache import Inspection, PlanLayer, PlanTensor
from engines.engine import OnProgress, Precision
from engines.errors import BackendError
from engines.manifest import Tensor
from engines.tensorrt import library

_DTYPES = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32"}

_LAYER_NAME = re.compile(r"Name: (.*?), LayerType: ")
_LAYER_KIND = re.compile(r", LayerType: ([^,]+)")
_LAYER_DTYPE = re.compile(r"Datatype: (\w+)")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build.

    Attributes:
        precision: fp16 and int8 may take a graph of their own, see :func:`library.typed_by_graph`.
        max_patches: patches at once at most; kernels are chosen for as many.
        workspace: scratch memory that a kernel may use, bytes.
    """

    precision: Precision
    max_patches: int
    workspace: int

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision) or self.max_patches < 1 or self.workspace < 1:
            raise ValueError(f"impossible options: {self}")


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build.

    Attributes:
        plan: the serialized engine. It is code for one device and one version of TensorRT.
        inspection: what is in it.
        timings: serialized timing cache, for the next build on this device; empty where the version has none.
    """

    plan: bytes = field(repr=False)
    inspection: Inspection
    timings: bytes = field(repr=False, default=b"")


def build_plan(
    scorer: bytes,
    tensors: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    options: BuildOptions,
    on_progress: OnProgress = lambda _phase, _share: None,
    timings: bytes = b"",
) -> Built:
    """Build a plan in memory; writes no file.

    Args:
        scorer: ONNX graph, its weights inside.
        tensors: inputs and outputs that the graph must have (``engines.manifest.scorer_tensors``).
        options: precision, size and memory.
        on_progress: see ``engines.engine.OnProgress``; without IProgressMonitor (8.6) it only hears of the end.
        timings: timing cache of an earlier build; ignored if it is another device's.

    Raises:
        BackendError: no TensorRT, or it refuses the graph (every node it complains about is named), or the build
            fails.
        KeyboardInterrupt: Ctrl-C; TensorRT stops at its next step.
        Exception: what ``on_progress`` raised.
    """
    trt = library.trt()
    monitor = _Monitor(on_progress)
    with library.transcript() as heard, monitor.watching_ctrl_c():
        builder = _make(lambda: trt.Builder(library.logger()), "the builder", heard)
        network = _make(lambda: builder.create_network(library.network_flags()), "a network", heard)
        # To be kept until the build is over: the network's weights are the parser's.
        parser = _make(lambda: trt.OnnxParser(network, library.logger()), "the parser", heard)
        _parse(parser, scorer, heard)
        found = _tensors(network)
        _compare(found, tensors)

        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the layers have no names
        library.set_precision(config, network, options.precision)
        profile = builder.create_optimization_profile()
        for tensor in tensors[0]:
            sizes = (1, options.max_patches, options.max_patches)
            profile.set_shape(tensor.name, *((n, *tensor.shape[1:]) for n in sizes))
        config.add_optimization_profile(profile)
        timing_cache = _use_timings(config, timings)
        if (progress_monitor := monitor.for_tensorrt()) is not None:
            config.progress_monitor = progress_monitor

        serialized = builder.build_serialized_network(network, config)
        monitor.raise_if_cancelled()
        if serialized is None:
            raise BackendError(
                f"{library.name()} {library.version()} cannot build a plan: {heard.reason()}. If memory is short, let "
                "fewer patches run at once (engine.max_patches) or lower engine.workspace_mib"
            )
    on_progress("finished", 1.0)
    return Built(
        plan=bytes(serialized),
        inspection=Inspection(
            tensors=found,
            patches=(1, options.max_patches, options.max_patches),
            layers=tuple(layer for line in heard.layers if (layer := _layer(line)) is not None),
        ),
        timings=bytes(timing_cache.serialize()) if timing_cache is not None else b"",
    )


def _make(make: Callable[[], Any], what: str, heard: library.Transcript) -> Any:  # noqa: ANN401
    """What NVIDIA's constructors return; they fail with None or, from Python, with a TypeError that says nothing."""
    try:
        made = make()
    except TypeError:
        made = None
    if made is None:
        raise BackendError(
            f"{library.name()} {library.version()} cannot make {what}: {heard.reason()}. It needs NVIDIA's driver "
            "(`nvidia-smi`); only TensorRT-RTX builds without one"
        )
    return made


def _parse(parser: Any, scorer: bytes, heard: library.Transcript) -> None:  # noqa: ANN401
    if parser.parse(scorer):
        return
    errors = [library.describe_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
    raise BackendError(
        f"{library.name()} {library.version()} refuses the graph: {'; '.join(errors) or heard.reason()}. Export the "
        "bundle again with this version's station-train, or set engine.backend to onnxruntime"
    )


def _tensors(network: Any) -> tuple[PlanTensor, ...]:  # noqa: ANN401
    def describe(tensor: Any, direction: Literal["in", "out"]) -> PlanTensor:  # noqa: ANN401
        return PlanTensor(
            name=tensor.name,
            direction=direction,
            dtype=_DTYPES.get(tensor.dtype.name, tensor.dtype.name),
            shape=tuple(int(size) for size in tensor.shape),
        )

    inputs = (describe(network.get_input(i), "in") for i in range(network.num_inputs))
    outputs = (describe(network.get_output(i), "out") for i in range(network.num_outputs))
    return (*inputs, *outputs)


def _layer(line: str) -> PlanLayer | None:
    """A layer from its line in the builder's log, as IEngineInspector writes them."""
    name, kind = _LAYER_NAME.match(line), _LAYER_KIND.search(line)
    if name is None or kind is None:
        return None
    dtypes = sorted({_DTYPES.get(dtype.upper(), dtype.lower()) for dtype in _LAYER_DTYPE.findall(line)})
    return PlanLayer(name=name[1], kind=kind[1], dtypes=tuple(dtypes))


def _compare(found: tuple[PlanTensor, ...], promised: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> None:
    wanted = {
        PlanTensor(name=tensor.name, direction=direction, dtype=tensor.dtype, shape=tensor.shape)
        for direction, tensors in zip(("in", "out"), promised, strict=True)
        for tensor in tensors
    }
    if set(found) != wanted:
        raise BackendError(
            f"the graph has {_list(set(found) - wanted)} where the manifest has {_list(wanted - set(found))}; export "
            "the bundle again"
        )


def _list(tensors: set[PlanTensor]) -> str:
    return ", ".join(sorted(f"{t.direction} {t.name} {t.dtype} {t.shape}" for t in tensors)) or "nothing"


def _use_timings(config: Any, timings: bytes) -> Any | None:  # noqa: ANN401
    """The timing cache of this build, filled with ``timings`` if they are this device's."""
    if not library.has_timing_cache():
        return None
    cache = config.create_timing_cache(timings)
    # A cache of another device would pick kernels by another device's times: TensorRT is asked to notice.
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class _Monitor:
    """Adds TensorRT's nested phases up to one share, and cancels the build."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._cancelled: BaseException | None = None
        self._lock = threading.Lock()  # TensorRT may call from several threads

    def for_tensorrt(self) -> Any | None:  # noqa: ANN401
        """As TensorRT takes it; None where it takes none."""
        return library.make_progress_monitor(self._start, self._step, self._finish)

    def raise_if_cancelled(self) -> None:
        """Raise what cancelled the build."""
        if self._cancelled is not None:
            raise self._cancelled

    @contextmanager
    def watching_ctrl_c(self) -> Iterator[None]:
        """Turn Ctrl-C into the end of the build.

        Left alone, KeyboardInterrupt would be raised inside one of TensorRT's calls to us, which prints and drops it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            self._cancelled = KeyboardInterrupt()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        self.raise_if_cancelled()

    def _start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def _step(self, name: str, step: int) -> bool:
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._share = min(1.0, max(self._share, self._share_done()))
        if self._cancelled is None:
            try:
                self._on_progress(name, self._share)
            except BaseException as error:  # noqa: BLE001 - raised again when TensorRT has stopped
                self._cancelled = error
        return self._cancelled is None

    def _finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def _share_done(self) -> float:
        """Steps done of the outermost phases, plus what is done of the steps in work."""

        def share(name: str) -> float:
            phase = self._phases[name]
            inner = [share(other) for other, its in self._phases.items() if its.parent == name]
            return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)

        return max((share(name) for name, phase in self._phases.items() if phase.parent is None), default=0.0)
