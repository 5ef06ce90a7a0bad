"""A recording double of what runs an engine: pycuda's driver module, libcuda's graph functions, TensorRT's runtime.

It has no GPU and no compiler in it, and knows one network: the toy of tests.support.bundles. What it does have are the
rules that real hardware punishes:

- Work on a stream happens as late as it may: when somebody waits for it. Who reads results before that, or writes new
  patches over old ones too early, gets wrong numbers.
- Every address is looked up among the living allocations, with its size; every copy needs page-locked memory.
- Calls must come from the thread that owns the context, with the context pushed, and so must the end of every object.
- A graph holds what was recorded, addresses and all.

What breaks a rule where no exception can show it is kept in ``violations``; what was called, in ``calls``.
"""

import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Callable, MutableMapping
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from weakref import WeakValueDictionary

import numpy as np

from engines.manifest import scorer_tensors
from tests.support.bundles import toy_scores

MAPPED_AT = 1 << 46  # where the GPU sees mapped host memory: elsewhere than the CPU, so that the two get not mixed up
OUT_OF_MEMORY = "cuMemAlloc failed: out of memory"
STREAM_CAPTURE_INVALIDATED = 901


class Error(Exception):
    pass


class MemoryError(Error):  # noqa: A001 - pycuda's name
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class GpuDouble:
    """The whole double; ``driver``, ``libcuda`` and ``tensorrt`` are its three faces."""

    def __init__(self, *, integrated: bool = False, n_devices: int = 1) -> None:
        self.integrated = integrated
        self.n_devices = n_devices
        self.calls: list[tuple] = []
        self.violations: list[str] = []
        self.recordable = True
        self.memory: dict[int, tuple[np.ndarray, str]] = {}  # by address: bytes and kind
        self.streams: MutableMapping[int, Stream] = WeakValueDictionary()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.retained = 0
        self.stacks: dict[int, list[Context]] = defaultdict(list)
        self.living: dict[str, int] = defaultdict(int)
        self._failures: dict[str, list[object]] = {}
        self._numbers = itertools.count(0x1000, 0x10)
        self.driver = make_driver(self)
        self.libcuda = make_libcuda(self)
        self.tensorrt = make_tensorrt(self)

    def fail(self, name: str, failure: object, at: int = 1) -> None:
        """Have the ``at``-th call of ``name`` from now raise ``failure``, or return it if it is no exception."""
        self._failures[name] = [None] * (at - 1) + [failure]

    def called(self, name: str, *details: object) -> object:
        """Remember a call; the failure that is due, or None."""
        self.calls.append((name, *details))
        due = self._failures.get(name)
        failure = due.pop(0) if due else None
        if isinstance(failure, Exception):
            raise failure
        return failure

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def number(self) -> int:
        return next(self._numbers)

    def demand_context(self, doing: str) -> None:
        if not self.stacks[threading.get_ident()]:
            raise LogicError(f"{doing} failed: invalid device context")

    def demand_owner(self, doing: str) -> None:
        """As :meth:`demand_context`, for places whose exceptions nobody sees."""
        if not self.stacks[threading.get_ident()]:
            self.violations.append(f"{doing} outside the GPU's thread or context")

    def allocate(self, size: int, kind: str) -> int:
        data = np.full(size, 0xAA, np.uint8)  # nothing may rely on zeros
        self.memory[data.ctypes.data] = (data, kind)
        return data.ctypes.data

    def release(self, address: int) -> None:
        for work in itertools.chain.from_iterable(stream.work for stream in self.streams.values()):
            if {address, address + MAPPED_AT} & work.touches:
                self.violations.append("memory freed while work on it was under way")
        del self.memory[address]

    def bytes_at(self, address: int, size: int, *kinds: str) -> np.ndarray:
        """The memory itself, if it is alive, large enough and of these kinds."""
        for start, (data, kind) in self.memory.items():
            seen = start + MAPPED_AT if kind == "mapped" and "device" in kinds else start
            if seen <= address and address + size <= seen + len(data):
                if kind in kinds or kind == "mapped":
                    return data[address - seen : address - seen + size]
                raise LaunchError(f"{address:#x} is {kind} memory")
        raise LaunchError(f"an illegal memory access was encountered: {size} bytes at {address:#x}")

    def used(self) -> int:
        return sum(len(data) for data, _ in self.memory.values())


class Context:
    def __init__(self, gpu: GpuDouble) -> None:
        self._gpu = gpu
        self._thread = threading.get_ident()

    def push(self) -> None:
        self._gpu.called("push")
        assert threading.get_ident() == self._thread
        self._gpu.stacks[self._thread].append(self)

    def pop(self) -> None:
        assert threading.get_ident() == self._thread
        assert self._gpu.stacks[self._thread].pop() is self

    def detach(self) -> None:
        self._gpu.called("detach")
        assert threading.get_ident() == self._thread
        self._gpu.retained -= 1
        if self in self._gpu.stacks[self._thread]:
            self._gpu.stacks[self._thread].remove(self)


class Living:
    """What the GPU's thread must end, counted."""

    def __init__(self, gpu: GpuDouble) -> None:
        self._gpu = gpu
        gpu.living[type(self).__name__] += 1

    def __del__(self) -> None:
        name = type(self).__name__
        self._gpu.demand_owner(f"{name} ended")
        self._gpu.living[name] -= 1
        self._gpu.calls.append((f"~{name}",))


class Stream(Living):
    def __init__(self, gpu: GpuDouble, flags: int) -> None:
        super().__init__(gpu)
        gpu.called("Stream", flags)
        gpu.demand_context("cuStreamCreate")
        self.handle = gpu.number()
        self.work: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        gpu.streams[self.handle] = self

    def enqueue(self, work: Callable[[], None], *touches: int) -> None:
        work.touches = set(touches)
        (self.work if self.recording is None else self.recording).append(work)

    def __del__(self) -> None:
        if self.work:
            self._gpu.violations.append("a stream ended with work under way")
        super().__del__()


class Event(Living):
    def __init__(self, gpu: GpuDouble, flags: int) -> None:
        super().__init__(gpu)
        gpu.called("Event", flags)
        self._stream: Stream | None = None
        self._until = 0

    def record(self, stream: Stream) -> None:
        self._gpu.called("Event.record", stream.handle)
        self._gpu.demand_context("cuEventRecord")
        assert stream.recording is None
        self._stream, self._until = stream, len(stream.work)

    def synchronize(self) -> None:
        self._gpu.demand_context("cuEventSynchronize")
        try:
            self._gpu.called("Event.synchronize")
        except LaunchError:  # a GPU that failed does nothing more
            for stream in self._gpu.streams.values():
                stream.work.clear()
            self._until = 0
            raise
        if self._stream is not None:
            for _ in range(self._until):
                self._stream.work.pop(0)()
            self._until = 0


class DeviceAllocation:
    def __init__(self, gpu: GpuDouble, size: int) -> None:
        self._gpu = gpu
        self._address = gpu.allocate(size, "device")

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._gpu.called("device free", self._address)
        self._gpu.demand_owner("device memory freed")
        self._gpu.release(self._address)


class PagelockedHostAllocation:
    def __init__(self, gpu: GpuDouble, shape: tuple[int, ...], dtype: np.dtype, flags: int) -> None:
        self._gpu = gpu
        self._mapped = flags == 2
        size = int(np.prod(shape)) * dtype.itemsize
        self._address = gpu.allocate(size, "mapped" if self._mapped else "page-locked")
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (self._address, False),
            "version": 3,
        }

    def get_device_pointer(self) -> int:
        assert self._mapped
        return self._address + MAPPED_AT

    def free(self) -> None:
        self._gpu.called("host free", self._address)
        self._gpu.demand_owner("page-locked memory freed")
        self._gpu.release(self._address)


def make_module(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def make_driver(gpu: GpuDouble) -> ModuleType:
    """``pycuda.driver`` as far as an engine uses it."""

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        @staticmethod
        def count() -> int:
            return gpu.n_devices

        def name(self) -> str:
            return "Double"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def total_memory(self) -> int:
            return 8 * 2**30

        def get_attribute(self, attribute: str) -> int:
            assert attribute == "INTEGRATED"
            return int(gpu.integrated)

        def retain_primary_context(self) -> Context:
            gpu.called("retain")
            gpu.retained += 1
            return Context(gpu)

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        gpu.called("pagelocked_empty", shape, np.dtype(dtype).name, mem_flags)
        gpu.demand_context("cuMemHostAlloc")
        return np.asarray(PagelockedHostAllocation(gpu, shape, dtype, mem_flags))

    def mem_alloc(size):
        gpu.called("mem_alloc", size)
        gpu.demand_context("cuMemAlloc")
        return DeviceAllocation(gpu, size)

    def copy(name, stream, device, host, *, to_device):
        gpu.called(name, stream.handle, int(device), host.ctypes.data, host.nbytes)
        gpu.demand_context(name)
        assert host.flags.c_contiguous
        address, size, there = host.ctypes.data, host.nbytes, int(device)

        def work():
            ends = gpu.bytes_at(there, size, "device"), gpu.bytes_at(address, size, "page-locked")
            target, source = ends if to_device else ends[::-1]
            target[:] = source

        stream.enqueue(work, there, address)

    return make_module(
        "pycuda.driver",
        Error=Error,
        MemoryError=MemoryError,
        init=lambda: gpu.called("init"),
        get_driver_version=lambda: 12060,
        Device=Device,
        device_attribute=SimpleNamespace(INTEGRATED="INTEGRATED"),
        host_alloc_flags=SimpleNamespace(DEVICEMAP=2),
        event_flags=IntEnum("event_flags", {"BLOCKING_SYNC": 1, "DISABLE_TIMING": 2}),
        Stream=lambda flags=0: Stream(gpu, flags),
        Event=lambda flags=0: Event(gpu, flags),
        pagelocked_empty=pagelocked_empty,
        mem_alloc=mem_alloc,
        memcpy_htod_async=lambda dest, src, stream: copy("htod", stream, dest, src, to_device=True),
        memcpy_dtoh_async=lambda dest, src, stream: copy("dtoh", stream, src, dest, to_device=False),
    )


def make_libcuda(gpu: GpuDouble) -> SimpleNamespace:
    """The driver's functions for graphs, called as ctypes calls them: numbers in, an error code out."""

    def value(argument) -> int:
        return getattr(argument, "value", argument)

    def function(name: str, body: Callable[..., None]) -> Callable[..., int]:
        def call(*arguments) -> int:
            failure = gpu.called(name)
            gpu.demand_context(name)
            if failure is None:
                body(*arguments)
            elif name == "cuStreamEndCapture":  # ends the recording in any case, but yields no graph then
                gpu.streams[value(arguments[0])].recording = None
            return 0 if failure is None else failure

        return call

    def begin(stream, mode):
        assert mode == 1
        assert not gpu.streams[value(stream)].work
        gpu.streams[value(stream)].recording = []

    def end(stream, graph):
        recorded = gpu.streams[value(stream)].recording
        gpu.streams[value(stream)].recording = None
        graph._obj.value = gpu.number()
        gpu.graphs[graph._obj.value] = recorded

    def instantiate(executable, graph, flags):
        assert flags == 0
        executable._obj.value = gpu.number()
        gpu.graphs[executable._obj.value] = gpu.graphs[value(graph)]

    def launch(executable, stream):
        gpu.streams[value(stream)].work.extend(gpu.graphs[value(executable)])

    def destroy(graph):
        del gpu.graphs[value(graph)]

    def error_string(code, text) -> int:
        text._obj.value = f"error {code} of the double".encode()
        return 0

    bodies = {
        "cuStreamBeginCapture_v2": begin,
        "cuStreamEndCapture": end,
        "cuGraphInstantiateWithFlags": instantiate,
        "cuGraphLaunch": launch,
        "cuGraphExecDestroy": destroy,
        "cuGraphDestroy": destroy,
    }
    functions = {name: function(name, body) for name, body in bodies.items()}
    return SimpleNamespace(**functions, cuGetErrorString=error_string)


def make_plan(patch_size: int, max_patches: int, *, min_patches: int = 1, **tensors: object) -> bytes:
    """A plan as :class:`Runtime` of the double reads it; ``tensors`` replaces the (dtype, shape) of some."""
    return json.dumps(
        {"patch_size": patch_size, "profile": [min_patches, max_patches, max_patches], "tensors": tensors}
    ).encode()


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class Runtime(Living):
    def __init__(self, gpu: GpuDouble, logger: object) -> None:
        super().__init__(gpu)
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        self._gpu.called("deserialize")
        self._gpu.demand_context("deserialize")
        try:
            described = json.loads(plan)
        except ValueError:
            self._logger.log(self._gpu.tensorrt.ILogger.Severity.ERROR, "Magic tag does not match")
            return None
        return Engine(self._gpu, self, described)


class Engine(Living):
    def __init__(self, gpu: GpuDouble, runtime: Runtime, described: dict) -> None:
        super().__init__(gpu)
        self._runtime = runtime
        self.patch_size = described["patch_size"]
        self.profile = described["profile"]
        types = {"uint8": DataType.UINT8, "float32": DataType.FLOAT, "float16": DataType.HALF}
        inputs, outputs = scorer_tensors(self.patch_size)
        self.inputs = {tensor.name for tensor in inputs}
        self.tensors = {
            tensor.name: (types[tensor.dtype], tuple(tensor.shape))
            for tensor in (*outputs, *inputs)  # in no order that anybody promises
        }
        for name, (dtype, shape) in described["tensors"].items():
            self.tensors[name] = (types[dtype], tuple(shape))

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, i: int) -> str:
        return list(self.tensors)[i]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("patches", 0)
        P = self.patch_size
        return [(n, P, P, 3) for n in self.profile]

    def create_execution_context(self) -> "ExecutionContext | None":
        if self._gpu.called("create_execution_context") is not None:
            return None
        self._gpu.demand_context("create_execution_context")
        return ExecutionContext(self._gpu, self)


class ExecutionContext(Living):
    def __init__(self, gpu: GpuDouble, engine: Engine) -> None:
        super().__init__(gpu)
        self._engine = engine
        self._n: int | None = None
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._gpu.called("set_input_shape", name, shape)
        P = self._engine.patch_size
        smallest, _, largest = self._engine.profile
        if name != "patches" or shape[1:] != (P, P, 3) or not smallest <= shape[0] <= largest:
            return False
        self._n = shape[0]
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._n or -1, *self._engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        return self._gpu.called("set_tensor_address", name, address) is None and not self.addresses.update(
            {name: address}
        )

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self._gpu.streams
        return self._gpu.recordable

    def execute_async_v3(self, stream: int) -> bool:
        gpu = self._gpu
        failed = gpu.called("execute", stream) is not None
        gpu.demand_context("execute_async_v3")
        if failed:
            return False
        n, P, addresses = self._n, self._engine.patch_size, dict(self.addresses)

        def work() -> None:
            patches = gpu.bytes_at(addresses["patches"], n * P * P * 3, "device").reshape(n, P, P, 3)
            scores = toy_scores(patches)
            for tensor in scorer_tensors(P)[1]:
                values = getattr(scores, tensor.name).astype(np.float32)
                there = gpu.bytes_at(addresses[tensor.name], values.nbytes, "device")
                there[:] = values.reshape(-1).view(np.uint8)

        gpu.streams[stream].enqueue(work, *addresses.values())
        return True


def make_tensorrt(gpu: GpuDouble) -> ModuleType:
    """``tensorrt`` as far as running a plan goes; version 10.3."""

    class ILogger:
        Severity = IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})

    return make_module(
        "tensorrt",
        __version__="10.3.0",
        ILogger=ILogger,
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        Runtime=lambda logger: Runtime(gpu, logger),
    )
