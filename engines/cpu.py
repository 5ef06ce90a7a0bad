"""What the back ends that compute on the CPU share."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines.engine import EngineSettings, UInt8Array
from engines.errors import BackendError
from engines.manifest import Manifest, Tensor

# Activations take about 64 bytes per pixel and unit of width (measured: width 16, 64 x 64: 4.2 MB a patch), so this
# many pixels times width keep them near 130 MB: 64 patches of a width-8 texture model. Of 32 at once, OpenVINO took
# up to 4 % more CPU time for each, of 16 up to 11 % more.
CHUNK_PIXELS_TIMES_WIDTH = 2**21


class Found(NamedTuple):
    """An input or output as a back end sees it; -1 is a size that it calls dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def cpu_name() -> str:
    """What /proc/cpuinfo calls the CPU; on most ARM boards, only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def count_threads(settings: EngineSettings) -> int:
    """Threads that an engine may have: what the settings say, else one for each core available to this process.

    Counted here: left to itself, ONNX Runtime pins a thread to every physical core of the machine, also to those that a
    container or taskset took away.
    """
    return settings.threads or len(os.sched_getaffinity(0))


def patches_at_once(manifest: Manifest) -> int:
    """How many patches a graph gets at once, so that memory does not grow with the frame."""
    return max(1, CHUNK_PIXELS_TIMES_WIDTH // (manifest.preprocessing.patch_size**2 * manifest.network.width))


def check_patches(patches: UInt8Array, patch_size: int) -> None:
    """Refuse what is not uint8 (N, P, P, 3) with N >= 1.

    Raises:
        ValueError: wrong shape or dtype.
    """
    P = patch_size
    if patches.dtype != np.uint8 or patches.ndim != 4 or len(patches) < 1 or patches.shape[1:] != (P, P, 3):
        raise ValueError(f"patches must be uint8 (N, {P}, {P}, 3) with N >= 1, not {patches.dtype} {patches.shape}")


def check_graph(manifest: Manifest, file: Path, inputs: Iterable[Found], outputs: Iterable[Found]) -> None:
    """Compare the inputs and outputs that a back end found in a graph with those that the manifest promises.

    Raises:
        BackendError: they differ.
    """
    for kind, promised, found in (("input", manifest.inputs, inputs), ("output", manifest.outputs, outputs)):
        actual = {_describe(tensor) for tensor in found}
        wanted = {_describe(tensor) for tensor in promised}
        if actual != wanted:
            raise BackendError(
                f"{file}: the graph's {kind}s are {'; '.join(sorted(actual))}, but the manifest says "
                f"{'; '.join(sorted(wanted))}; export the bundle again"
            )


def _describe(tensor: Found | Tensor) -> str:
    return f"{tensor.name} {tensor.dtype} ({', '.join('N' if size < 0 else str(size) for size in tensor.shape)})"
