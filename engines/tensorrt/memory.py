"""Memory that CPU and GPU both reach: one buffer for each tensor of an engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.tensorrt.gpu import NO_MEMORY, cuda, cuda_errors

_MIB = 2**20


class Buffer:
    """A tensor's memory on both sides.

    Page-locked on the CPU's side, so that the GPU copies it on its own while the CPU goes on; from pageable memory an
    "asynchronous" copy waits. Where both share one memory (Jetson), the GPU works on the same bytes and nothing is
    copied: reading the input once and writing each output once is all that the scorer does with them, and from compute
    capability 7.2 on both sides cache such memory.

    All methods belong to the GPU's thread; ``host`` may be read and written by any, but not while the GPU works on it.

    Attributes:
        host: the CPU's view, of the shape and dtype asked for.
        address: where the GPU finds it.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, *, shared: bool) -> None:
        """Allocate it.

        Args:
            shape: first the number of patches.
            dtype: of the elements.
            shared: whether CPU and GPU share one memory.

        Raises:
            BackendError: there is not enough memory.
        """
        driver = cuda()
        flags = driver.host_alloc_flags.DEVICEMAP if shared else 0
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._device: Any = None
        with cuda_errors(f"allocating {size / _MIB:.1f} MiB of page-locked memory", NO_MEMORY):
            self.host: NDArray[Any] = driver.pagelocked_empty(tuple(shape), np.dtype(dtype), mem_flags=flags)
        self._pinned: Any = self.host.base
        try:
            with cuda_errors(f"allocating {size / _MIB:.1f} MiB on the GPU", NO_MEMORY):
                if shared:
                    self.address = int(self._pinned.get_device_pointer())
                else:
                    self._device = driver.mem_alloc(size)
                    self.address = int(self._device)
        except BaseException:
            self.free()
            raise

    def upload(self, n: int, stream: Any) -> None:  # noqa: ANN401 - pycuda has no types
        """Enqueue bringing the first ``n`` patches to the GPU."""
        if self._device is not None:
            cuda().memcpy_htod_async(self._device, self.host[:n], stream)

    def download(self, n: int, stream: Any) -> None:  # noqa: ANN401 - pycuda has no types
        """Enqueue bringing the first ``n`` patches' results back."""
        if self._device is not None:
            cuda().memcpy_dtoh_async(self.host[:n], self._device, stream)

    def free(self) -> None:
        """Free both sides; no work on them may be under way. Twice is allowed."""
        device, self._device = self._device, None
        pinned, self._pinned = self._pinned, None
        if device is not None:
            device.free()
        if pinned is not None:
            del self.host  # whoever still asks for it gets an exception, not freed memory
            pinned.free()
