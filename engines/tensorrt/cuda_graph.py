"""CUDA graphs: a frame's work recorded once, then started with one call instead of some forty.

pycuda has no graphs (2026.1), so the driver's functions are called directly: six of them, the same in every CUDA from
11.4 on, on the stream and in the context that pycuda made.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from engines.errors import BackendError
from engines.tensorrt.gpu import RESTART

DRIVER = "libcuda.so.1"
_THREAD_LOCAL = 1  # CUstreamCaptureMode: what other threads allocate meanwhile does not spoil the recording

_Handle = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (_Handle, ctypes.c_int),
    "cuStreamEndCapture": (_Handle, ctypes.POINTER(_Handle)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_Handle), _Handle, ctypes.c_ulonglong),
    "cuGraphLaunch": (_Handle, _Handle),
    "cuGraphExecDestroy": (_Handle,),
    "cuGraphDestroy": (_Handle,),
}


class CudaGraph:
    """Recorded work, ready to be replayed. It holds the addresses that were recorded: they must outlive it."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Record what ``enqueue`` puts on the stream; nothing of it runs yet.

        Args:
            stream: handle of an idle stream, not the default one.
            enqueue: must neither allocate nor wait.

        Raises:
            BackendError: the work cannot be recorded. The stream is as before and can be used without a graph.
        """
        self._stream = stream
        self._executable = _Handle()
        graph = _Handle()
        _call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            # Ends the recording in any case. That it reports the broken recording once more is no news.
            _function("cuStreamEndCapture")(stream, ctypes.byref(graph))
            if graph:
                _call("cuGraphDestroy", graph)
            raise
        _call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, 0)
        finally:
            _call("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Enqueue all of it on the stream that it was recorded from.

        Raises:
            BackendError: the driver refused.
        """
        try:
            _call("cuGraphLaunch", self._executable, self._stream)
        except BackendError as error:
            raise BackendError(f"{error}; {RESTART}") from error

    def free(self) -> None:
        """Forget it; it must not be running. Twice is allowed."""
        if self._executable:
            executable, self._executable = self._executable, _Handle()
            _call("cuGraphExecDestroy", executable)


@cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL(DRIVER)
    for name, arguments in _SIGNATURES.items():
        function = getattr(driver, name)
        function.argtypes = arguments
        function.restype = ctypes.c_int
    driver.cuGetErrorString.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
    driver.cuGetErrorString.restype = ctypes.c_int
    return driver


def _function(name: str) -> Callable[..., int]:
    function: Callable[..., int] = getattr(_driver(), name)
    return function


def _call(name: str, *arguments: Any) -> None:  # noqa: ANN401 - whatever the function takes
    code = _function(name)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        _function("cuGetErrorString")(code, ctypes.byref(text))
        raise BackendError(f"{name} failed: {(text.value or b'unknown error').decode()} (CUDA error {code})")
