"""ONNX Runtime on the CPU: the back end that every station has."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: TID251 - this is the one place; engines/__init__.py has turned its telemetry off
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # noqa: TID251

from engines.bundle import SCORER_FILES, Bundle
from engines.engine import EngineInfo, EngineSettings, PatchScores, Precision, UInt8Array
from engines.errors import BackendError
from engines.manifest import Manifest

NAME = "onnxruntime"
VERSION: str = onnxruntime.__version__

# Activations take about 64 bytes per pixel and unit of width (measured: width 16, 64 x 64: 4.2 MB a patch), so this
# many pixels times width keep them near 130 MB: 32 patches of a width-16 texture model. Per patch, 16 at once cost 8 %
# more CPU time than 32, one alone 45 %, and 64 or 128 save 7 %.
CHUNK_PIXELS_TIMES_WIDTH = 2**21

_LOG_FATAL_ONLY = 4  # errors come as exceptions; without this they are printed as well
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_ORT_ERRORS: tuple[type[Exception], ...] = (  # they have no base of their own
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)


class OnnxRuntimeEngine:
    """Scores patches with ONNX Runtime on the CPU.

    Args:
        bundle: a verified bundle.
        settings: ``threads`` is followed.
        precision: which of the bundle's graphs. On a CPU, others than fp32 are slower and only of use to see what they
            do to scores.

    Raises:
        BackendError: ONNX Runtime refuses the graph, or the graph is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, settings: EngineSettings, precision: Precision = "fp32") -> None:
        file, graph = bundle.path / SCORER_FILES[precision], bundle.variant(precision)
        if graph is None:
            raise BackendError(f"{file}: this bundle has no graph for {precision}")
        # Counted here: left to itself, ONNX Runtime pins a thread to every physical core of the machine, also to those
        # that a container or taskset took away.
        threads = settings.threads or len(os.sched_getaffinity(0))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _LOG_FATAL_ONLY
        # Threads that wait for work sleep instead of spinning. Measured on two shared cores: spinning kept 0.36 cores
        # busy where the work needed 0.14, took them from the camera and lowered the rate from 72 to 52 patches/s.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Or else bytes that look like ONNX Runtime's own format would get past the checks made on the ONNX graph.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise BackendError(
                f"{file}: ONNX Runtime {VERSION} refuses the graph ({_first_line(error)}); update "
                "cbigan-station, or export the bundle again with this version's station-train"
            ) from error
        _check_graph(session, bundle.manifest, file)
        self._session: onnxruntime.InferenceSession | None = session
        self._patch_size = bundle.manifest.preprocessing.patch_size
        self._chunk = _chunk(bundle.manifest)
        self._outputs = [tensor.name for tensor in bundle.manifest.outputs]
        self._info = EngineInfo(
            backend=NAME, backend_version=VERSION, device=f"{cpu_name()}, threads: {threads}", precision=precision
        )

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""
        return self._info

    def score(self, patches: UInt8Array) -> PatchScores:
        """Score uint8 patches (N, P, P, 3), N >= 1; memory beyond the result does not grow with N.

        Raises:
            BackendError: ONNX Runtime failed, or the engine is closed.
            ValueError: wrong shape or dtype.
        """
        P = self._patch_size
        if patches.dtype != np.uint8 or patches.ndim != 4 or len(patches) < 1 or patches.shape[1:] != (P, P, 3):
            raise ValueError(f"patches must be uint8 (N, {P}, {P}, 3) with N >= 1, not {patches.dtype} {patches.shape}")
        if self._session is None:
            raise BackendError("the engine is closed")
        N = len(patches)
        scores = PatchScores.empty(N, P, anomaly_map="anomaly_map" in self._outputs)
        for start in range(0, N, self._chunk):
            part = slice(start, start + self._chunk)
            try:
                outputs = self._session.run(self._outputs, {"patches": np.ascontiguousarray(patches[part])})
            except _ORT_ERRORS as error:
                raise BackendError(f"ONNX Runtime {VERSION} failed while scoring: {_first_line(error)}") from error
            for name, output in zip(self._outputs, outputs, strict=True):
                getattr(scores, name)[part] = output
        return scores

    def close(self) -> None:
        """Free the graph's memory. Closing twice is allowed."""
        self._session = None


def cpu_name() -> str:
    """What /proc/cpuinfo calls the CPU; on most ARM boards, only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _chunk(manifest: Manifest) -> int:
    """How many patches the graph gets at once."""
    return max(1, CHUNK_PIXELS_TIMES_WIDTH // (manifest.preprocessing.patch_size**2 * manifest.network.width))


def _check_graph(session: onnxruntime.InferenceSession, manifest: Manifest, file: Path) -> None:
    """Compare the graph's inputs and outputs with the manifest's; names that the graph gives to sizes are dynamic."""
    for kind, promised, found in (
        ("input", manifest.inputs, session.get_inputs()),
        ("output", manifest.outputs, session.get_outputs()),
    ):
        actual = {
            _describe(
                node.name, _TYPES.get(node.type, node.type), [d if isinstance(d, int) else -1 for d in node.shape]
            )
            for node in found
        }
        wanted = {_describe(tensor.name, tensor.dtype, tensor.shape) for tensor in promised}
        if actual != wanted:
            raise BackendError(
                f"{file}: the graph's {kind}s are {'; '.join(sorted(actual))}, but the manifest "
                f"says {'; '.join(sorted(wanted))}; export the bundle again"
            )


def _describe(name: str, dtype: str, shape: Iterable[int]) -> str:
    return f"{name} {dtype} ({', '.join('N' if size < 0 else str(size) for size in shape)})"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
