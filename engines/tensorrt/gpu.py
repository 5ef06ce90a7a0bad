"""The GPU, by pycuda: which one it is, and the one thread that owns everything on it."""

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from engines.errors import BackendError

Result = TypeVar("Result")

INSTALL = (
    "`pip install pycuda` builds it with the CUDA toolkit's nvcc, which must be on the PATH (on a Jetson: "
    "PATH=$PATH:/usr/local/cuda/bin)"
)
NO_GPU = (
    "`nvidia-smi` must list a GPU here, also inside a container (start it with `--gpus all`, on a Jetson with "
    "`--runtime nvidia`), and its driver must be as new as the CUDA toolkit; or set engine.backend to onnxruntime"
)
NO_MEMORY = (
    "the GPU's memory is full; let fewer patches run at once (engine.max_patches), choose engine.precision fp16, or "
    "stop what else uses the GPU (`nvidia-smi`, on a Jetson `tegrastats`)"
)
RESTART = (
    "after an error of this kind the driver refuses all further work of the process; restart the station (systemd "
    "does), and look for Xid messages in `dmesg` if it happens again"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a GPU is.

    Attributes:
        name: the maker's name for it.
        compute_capability: (major, minor).
        integrated: whether it shares the CPU's memory, as on a Jetson.
        memory: total, bytes.
        cuda: newest CUDA version that the driver knows, such as (12, 6).
    """

    name: str
    compute_capability: tuple[int, int]
    integrated: bool
    memory: int
    cuda: tuple[int, int]


@cache
def cuda() -> Any:  # noqa: ANN401 - a module without types
    """``pycuda.driver``, initialized.

    Raises:
        BackendError: pycuda or the driver are missing, or there is no GPU; says which, and what to do.
    """
    try:
        import pycuda.driver  # noqa: PLC0415 - where there is no GPU it can be neither built nor imported
    except ModuleNotFoundError as error:
        raise BackendError(f"pycuda is not installed ({error}); {INSTALL}") from error
    except ImportError as error:  # libcuda.so.1 is missing, or older than the toolkit that pycuda was built with
        raise BackendError(f"NVIDIA's driver cannot be loaded ({error}); {NO_GPU}") from error
    try:
        pycuda.driver.init()
        if pycuda.driver.Device.count() < 1:
            raise BackendError(f"there is no GPU; {NO_GPU}")
    except pycuda.driver.Error as error:
        raise BackendError(f"the GPU cannot be used ({error}); {NO_GPU}") from error
    return pycuda.driver


@contextmanager
def cuda_errors(doing: str, way_out: str) -> Iterator[None]:
    """Turn every error of CUDA into a BackendError that says what was being done and what to do."""
    driver = cuda()
    try:
        yield
    except driver.MemoryError as error:
        raise BackendError(f"{doing} failed ({error}); {NO_MEMORY}") from error
    except driver.Error as error:
        raise BackendError(f"{doing} failed ({error}); {way_out}") from error


def describe_gpu() -> Gpu:
    """The GPU that the back end uses: the first that CUDA_VISIBLE_DEVICES leaves visible.

    Raises:
        BackendError: there is none; says what is missing.
    """
    driver = cuda()
    with cuda_errors("asking what the GPU is", NO_GPU):
        device = driver.Device(0)
        version = driver.get_driver_version()
        return Gpu(
            name=device.name(),
            compute_capability=device.compute_capability(),
            integrated=bool(device.get_attribute(driver.device_attribute.INTEGRATED)),
            memory=device.total_memory(),
            cuda=(version // 1000, version % 1000 // 10),
        )


class GpuThread:
    """The one thread that makes, uses and frees an engine's objects on the GPU.

    pycuda lets only the thread that made an object free it, and TensorRT works on whatever context is current in the
    calling thread. The station, though, opens the engine in one thread, scores in another and closes in either.

    The context is the device's primary one, which TensorRT, ONNX Runtime and torch use as well: with a context of our
    own the driver would have to switch between the two, and pointers of one would mean nothing in the other.
    """

    def __init__(self) -> None:
        """Start the thread and take the primary context.

        Raises:
            BackendError: there is no usable GPU.
        """
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu")
        self._context: Any = None
        try:
            self._executor.submit(self._retain).result()
        except BaseException:
            self._executor.shutdown()
            raise

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._context is None

    def start(self, work: Callable[[], Result]) -> "Future[Result]":
        """Have ``work`` done after all that was started before; the future holds what it returns or raises.

        Raises:
            BackendError: the thread was closed.
        """
        if self.closed:
            raise BackendError("the engine is closed")
        return self._executor.submit(self._within_context, work)

    def run(self, work: Callable[[], Result]) -> Result:
        """Have ``work`` done and wait for it."""
        return self.start(work).result()

    def close(self) -> None:
        """Give the context back and end the thread; what was made in it must be freed by now. Twice is allowed."""
        if not self.closed:
            self.run(self._release)
            self._executor.shutdown()

    def _retain(self) -> None:
        driver = cuda()
        with cuda_errors("opening the GPU", NO_GPU):
            self._context = driver.Device(0).retain_primary_context()

    def _release(self) -> None:
        context, self._context = self._context, None
        context.detach()

    def _within_context(self, work: Callable[[], Result]) -> Result:
        context = self._context
        # Not pushed once and for all: a thread that ends with a context pushed makes pycuda abort the process, and at
        # the interpreter's exit threads end whether or not somebody closed the engine.
        with cuda_errors("entering the GPU's context", RESTART):
            context.push()
        try:
            return work()
        except BaseException as error:
            _let_go(error)
            raise
        finally:
            if not self.closed:  # giving the context back has popped it
                context.pop()


def _let_go(error: BaseException) -> None:
    """Clear the frames that an error has passed through: what they refer to must end in the GPU's thread, not later."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
