"""From a plan to scores: runs a TensorRT engine with pycuda, all of it on one GPU thread."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from engines.engine import PatchScores, UInt8Array
from engines.errors import BackendError, PlanError
from engines.manifest import Tensor, scorer_tensors
from engines.tensorrt import library
from engines.tensorrt.cuda_graph import CudaGraph
from engines.tensorrt.gpu import NO_MEMORY, RESTART, Gpu, GpuThread, cuda, cuda_errors, describe_gpu
from engines.tensorrt.memory import Buffer

log = structlog.get_logger(__name__)

SLOTS = 2
"""Submissions under way at once: while the GPU works on one, the CPU fills or empties the other."""

INPUT = "patches"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not held up by what others do on the default stream
_BUILD_AGAIN = "build it again on this device: `station engine build --again`"


class Runner:
    """Runs a plan. One thread uses it at a time; which one may change.

    ``score`` takes any number of patches. ``submit`` and ``result`` are its two halves, for whoever has something else
    to do meanwhile; at most ``SLOTS`` submissions may be under way.

    Each slot has an execution context, a stream and buffers of its own, all allocated here: what fits when the engine
    opens fits for ever. The second time in a row that a slot gets the same number of patches, its work is recorded as a
    CUDA graph, which is replayed until the number changes. A camera's frames always have the same number.

    Attributes:
        gpu: what it runs on.
        patch_size: side of the patches that the plan takes.
    """

    def __init__(self, plan: bytes, max_patches: int, *, cuda_graphs: bool = True) -> None:
        """Load a plan and allocate all that it will ever need.

        Args:
            plan: a serialized engine that was built here. Never a foreign one: a plan is code.
            max_patches: how many patches may run at once; memory grows with it. ``score`` runs more in turns.
            cuda_graphs: False enqueues every operation anew, which is slower.

        Raises:
            PlanError: the plan does not fit this TensorRT, this GPU or these sizes.
            BackendError: no GPU, or not enough memory.
        """
        if max_patches < 1:
            raise ValueError(f"max_patches must be at least 1, not {max_patches}")
        self.gpu: Gpu = describe_gpu()
        self.patch_size = 0
        self._max_patches = max_patches
        self._cuda_graphs = cuda_graphs
        self._slots: list[_Slot] = []
        self._owned = ExitStack()  # filled and emptied in the GPU's thread
        self._thread = GpuThread()
        try:
            self._thread.run(lambda: self._open(plan))
        except BaseException:
            self.close()
            raise

    @property
    def graphs(self) -> int:
        """How many slots replay a CUDA graph at present."""
        return sum(slot.graph is not None for slot in self._slots)

    def score(self, patches: UInt8Array) -> PatchScores:
        """Score uint8 patches (N, P, P, 3), N >= 1.

        Raises:
            BackendError: CUDA or TensorRT failed, or the runner is closed.
            ValueError: wrong shape or dtype.
        """
        self._check(patches)
        N = len(patches)
        scores = self._make_scores(N)
        # Turns of one size, so that all of them replay the same graphs; the last one overlaps the one before it.
        n_turns = -(-N // self._max_patches)
        size = -(-N // n_turns)
        under_way: deque[tuple[_Submission, slice]] = deque()
        try:
            for turn in range(n_turns):
                start = min(turn * size, N - size)
                part = slice(start, start + size)
                if len(under_way) == SLOTS:
                    self._collect(*under_way.popleft(), scores)
                under_way.append((self.submit(patches[part]), part))
            while under_way:
                self._collect(*under_way.popleft(), scores)
        finally:
            for submission, part in under_way:  # after an error, which is told; the next call must find idle slots
                with suppress(BackendError):
                    self._collect(submission, part, scores)
        return scores

    def submit(self, patches: UInt8Array) -> "_Submission":
        """Start scoring at most ``max_patches`` patches, uint8 (n, P, P, 3); they are copied before it returns.

        Raises:
            BackendError: the runner is closed.
            ValueError: wrong shape, dtype or number.
            RuntimeError: ``SLOTS`` are under way already; collect a result first.
        """
        self._check(patches)
        n = len(patches)
        if n > self._max_patches:
            raise ValueError(f"{n} patches at once; the runner was opened for {self._max_patches}")
        slot = next((slot for slot in self._slots if not slot.busy), None)
        if slot is None:
            raise RuntimeError(f"{SLOTS} submissions are under way; collect a result first")
        np.copyto(slot.input.host[:n], patches)
        slot.busy = True
        return _Submission(slot, n, self._thread.start(lambda: slot.launch(n, record=self._cuda_graphs)))

    def result(self, submission: "_Submission") -> PatchScores:
        """Wait for a submission; each one's result is taken once.

        Raises:
            BackendError: CUDA or TensorRT failed, or the runner is closed.
        """
        scores = self._make_scores(submission.n)
        self._collect(submission, slice(None), scores)
        return scores

    def close(self) -> None:
        """Free everything, in reverse order. Twice is allowed.

        Raises:
            BackendError: the GPU had failed before; everything that still could be freed was.
        """
        self._slots = []
        if self._thread.closed:
            return
        try:
            self._thread.run(self._owned.close)
        finally:
            self._thread.close()

    def _open(self, plan: bytes) -> None:
        trt = library.trt()
        with library.transcript() as heard:
            runtime = trt.Runtime(library.logger())
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise PlanError(f"{library.name()} {library.version()} refuses the plan ({heard.reason()}); {_BUILD_AGAIN}")
        self.patch_size, self._tensors = _check_engine(engine, self._max_patches)
        for _ in range(SLOTS):
            slot = _Slot(engine, self._tensors, self._max_patches, shared=self.gpu.integrated)
            self._owned.callback(slot.free)
            self._slots.append(slot)

    def _check(self, patches: UInt8Array) -> None:
        if not self._slots:
            raise BackendError("the engine is closed")
        P = self.patch_size
        if patches.dtype != np.uint8 or patches.ndim != 4 or len(patches) < 1 or patches.shape[1:] != (P, P, 3):
            raise ValueError(f"patches must be uint8 (N, {P}, {P}, 3) with N >= 1, not {patches.dtype} {patches.shape}")

    def _make_scores(self, n: int) -> PatchScores:
        maps = any(tensor.name == "anomaly_map" for tensor in self._tensors)
        return PatchScores.empty(n, self.patch_size, anomaly_map=maps)

    def _collect(self, submission: "_Submission", part: slice, scores: PatchScores) -> None:
        """Wait for a submission and copy its results to ``part`` of the scores; its slot is idle afterwards."""
        slot = submission.slot
        try:
            submission.launched.result()
            self._thread.run(slot.wait)
            for name, buffer in slot.outputs.items():
                getattr(scores, name)[part] = buffer.host[: submission.n]
        finally:
            slot.busy = False


class _Slot:
    """What one submission needs: a context, a stream, buffers, and the graph of the latest number of patches.

    All methods belong to the GPU's thread. A graph is bound to the state of its execution context, so no context
    serves two: when the number of patches changes, the graph is dropped before the context learns the new shape.

    Attributes:
        busy: whether a submission is under way; belongs to the thread that uses the runner.
        graph: what is replayed; None while the number of patches is new, or where it cannot be recorded.
    """

    def __init__(
        self,
        engine: Any,  # noqa: ANN401
        tensors: tuple[Tensor, ...],
        max_patches: int,
        *,
        shared: bool,
    ) -> None:
        driver = cuda()
        self.busy = False
        self.graph: CudaGraph | None = None
        self._n = 0
        self._warm = False
        self._recordable = True
        self._owned = ExitStack()
        try:
            with cuda_errors("making a stream", RESTART):
                self._stream: Any = driver.Stream(_NON_BLOCKING)
                self._owned.callback(self.__setattr__, "_stream", None)
                # A wait on it sleeps; waiting on the stream itself would keep a core busy that the camera needs.
                flags = driver.event_flags.BLOCKING_SYNC | driver.event_flags.DISABLE_TIMING
                self._done: Any = driver.Event(flags)
                self._owned.callback(self.__setattr__, "_done", None)
            buffers = {}
            for tensor in tensors:
                buffers[tensor.name] = Buffer((max_patches, *tensor.shape[1:]), tensor.dtype, shared=shared)
                self._owned.callback(buffers[tensor.name].free)
            self.input = buffers[INPUT]
            self.outputs = {name: buffer for name, buffer in buffers.items() if name != INPUT}
            self._context: Any = _make_context(engine)
            self._owned.callback(self.__setattr__, "_context", None)
            _set_addresses(self._context, buffers)
            self._owned.callback(self._drop_graph)
            self._owned.callback(self.wait)
        except BaseException:
            self._owned.close()
            raise

    def launch(self, n: int, *, record: bool) -> None:
        """Enqueue upload, inference and download of the first ``n`` patches of the input; returns at once."""
        if n != self._n:
            self._set_number(n)
        # Not the first time: TensorRT sets itself up in the first run of a shape, which must not be recorded.
        if record and self._recordable and self._warm and self.graph is None:
            self._record()
        if self.graph is not None:
            self.graph.launch()
        else:
            self._enqueue()
        self._warm = True
        with cuda_errors("marking the end of the GPU's work", RESTART):
            self._done.record(self._stream)

    def wait(self) -> None:
        """Wait until what was enqueued is done."""
        with cuda_errors("running the engine on the GPU", RESTART):
            self._done.synchronize()

    def free(self) -> None:
        """Wait, then free graph, context, buffers, event and stream."""
        self._owned.close()

    def _set_number(self, n: int) -> None:
        self._drop_graph()
        self._n, self._warm = 0, False
        P = self.input.host.shape[1]
        with library.transcript() as heard:
            accepted = self._context.set_input_shape(INPUT, (n, P, P, 3))
            # What is larger than its buffer would be written over something else.
            fits = all(
                tuple(self._context.get_tensor_shape(name)) == (n, *buffer.host.shape[1:])
                for name, buffer in self.outputs.items()
            )
        if not accepted or not fits:
            raise BackendError(f"the plan does not take {n} patches ({heard.reason()}); {_BUILD_AGAIN}")
        self._n = n

    def _enqueue(self) -> None:
        with cuda_errors("starting the engine on the GPU", RESTART), library.transcript() as heard:
            self.input.upload(self._n, self._stream)
            if not self._context.execute_async_v3(self._stream.handle):
                raise BackendError(f"{library.name()} failed to start the engine ({heard.reason()}); {RESTART}")
            for buffer in self.outputs.values():
                buffer.download(self._n, self._stream)

    def _record(self) -> None:
        why = f"{library.name()} says that this engine cannot be recorded"
        if library.can_record(self._context, self._stream.handle):
            try:
                self.graph = CudaGraph(self._stream.handle, self._enqueue)
            except BackendError as error:
                why = str(error)
        if self.graph is None:
            self._recordable = False
            log.warning("no CUDA graph; every operation is started one by one, which is slower", why=why)

    def _drop_graph(self) -> None:
        graph, self.graph = self.graph, None
        if graph is not None:
            graph.free()


@dataclass(frozen=True, slots=True, eq=False)
class _Submission:
    """Patches under way: from :meth:`Runner.submit`, for :meth:`Runner.result`."""

    slot: _Slot
    n: int
    launched: "Future[None]"


def _check_engine(engine: Any, max_patches: int) -> tuple[int, tuple[Tensor, ...]]:  # noqa: ANN401
    """Compare the engine with what every scorer is; returns the patch size, and the input and outputs."""
    trt = library.trt()
    types = {trt.DataType.UINT8: "uint8", trt.DataType.FLOAT: "float32"}
    found = {}
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        direction = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        dtype = engine.get_tensor_dtype(name)
        found[name] = (direction, types.get(dtype, str(dtype)), tuple(engine.get_tensor_shape(name)))
    shape = found.get(INPUT, ("", "", ()))[2]
    patch_size = shape[1] if len(shape) == 4 else 0
    inputs, outputs = scorer_tensors(patch_size, anomaly_map="anomaly_map" in found)
    wanted = {
        tensor.name: (direction, tensor.dtype, tensor.shape)
        for direction, tensors in (("input", inputs), ("output", outputs))
        for tensor in tensors
    }
    if found != wanted:
        raise PlanError(f"the plan is not that of a scorer: it has {found}, not {wanted}; {_BUILD_AGAIN}")
    smallest, _, largest = (shape[0] for shape in engine.get_tensor_profile_shape(INPUT, 0))
    if smallest > 1 or largest < max_patches:
        raise PlanError(
            f"the plan was built for {smallest} to {largest} patches at once, but 1 to {max_patches} are needed; "
            f"{_BUILD_AGAIN}"
        )
    return patch_size, (*inputs, *outputs)


def _make_context(engine: Any) -> Any:  # noqa: ANN401
    with library.transcript() as heard:
        context = library.create_context(engine)
    if context is None:
        raise BackendError(f"{library.name()} cannot make an execution context ({heard.reason()}); {NO_MEMORY}")
    return context


def _set_addresses(context: Any, buffers: Mapping[str, Buffer]) -> None:  # noqa: ANN401
    for name, buffer in buffers.items():
        if not context.set_tensor_address(name, buffer.address):
            raise BackendError(f"{library.name()} refuses the address of {name}; {_BUILD_AGAIN}")
