"""ONNX Runtime on the CPU: the back end that every station has."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime  # noqa: TID251 - this is the one place; engines/__init__.py has turned its telemetry off
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # noqa: TID251

from engines.bundle import SCORER_FILES, Bundle
from engines.cpu import Found, check_graph, check_patches, count_threads, cpu_name, patches_at_once
from engines.engine import EngineInfo, EngineSettings, PatchScores, Precision, UInt8Array
from engines.errors import BackendError

NAME = "onnxruntime"
VERSION: str = onnxruntime.__version__

CHUNK_PIXELS = 2**16
"""The graph never gets more at once, however narrow it is: 16 patches of 64 x 64. Of 64 at once, each cost 10 % more at
width 3 and 4 % at width 8. Where other programs need the cache as well, convolutions that read more than some 4 MB took
two to three times as long; 16 patches of width 8 stay below."""

_ADDS_RIGHT_SINCE = (1, 28)
"""1.17 to 1.26 mixed up channels in, or failed at, what :func:`fuse` makes; 1.28, 1.30 and 1.32 did not."""

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
        threads = count_threads(settings)
        try:
            if fuses():
                graph = fuse(graph)
            session = onnxruntime.InferenceSession(graph, session_options(threads), providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise BackendError(
                f"{file}: ONNX Runtime {VERSION} refuses the graph ({_first_line(error)}); update "
                "cbigan-station, or export the bundle again with this version's station-train"
            ) from error
        check_graph(bundle.manifest, file, _tensors(session.get_inputs()), _tensors(session.get_outputs()))
        self._session: onnxruntime.InferenceSession | None = session
        self._patch_size = bundle.manifest.preprocessing.patch_size
        self._chunk = max(1, min(patches_at_once(bundle.manifest), CHUNK_PIXELS // self._patch_size**2))
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
        check_patches(patches, self._patch_size)
        if self._session is None:
            raise BackendError("the engine is closed")
        N = len(patches)
        scores = PatchScores.empty(N, self._patch_size, anomaly_map="anomaly_map" in self._outputs)
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


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How a session is opened."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _LOG_FATAL_ONLY
    # Threads that wait for work sleep instead of spinning. Measured on two shared cores: spinning kept 0.36 cores
    # busy where the work needed 0.14, took them from the camera and lowered the rate from 72 to 52 patches/s.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Or else bytes that look like ONNX Runtime's own format would get past the checks made on the ONNX graph.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def fuse(graph: bytes) -> bytes:
    """The graph in ONNX Runtime's own operators, where a convolution also adds a block's skip and does its LeakyReLU.

    On x86, ONNX Runtime lays convolutions out in blocks of channels before it looks for a LeakyReLU behind an addition,
    which it then does not find, and each of them costs three passes over the image. So it optimizes once without blocks
    and, opening the result, once with them: 9 % faster at widths 8 and 16.
    """
    with os.fdopen(os.memfd_create("scorer"), "rb") as file:
        options = session_options(threads=1)
        options.optimized_model_filepath = f"/proc/self/fd/{file.fileno()}"
        onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
        return file.read()


def fuses() -> bool:
    """Whether this version runs right what :func:`fuse` makes; and this is Linux, which has files in memory."""
    return hasattr(os, "memfd_create") and tuple(int(part) for part in VERSION.split(".")[:2]) >= _ADDS_RIGHT_SINCE


def _tensors(nodes: Iterable[Any]) -> list[Found]:
    """As ONNX Runtime describes them; names that the graph gives to sizes are dynamic."""
    return [
        Found(node.name, _TYPES.get(node.type, node.type), tuple(d if isinstance(d, int) else -1 for d in node.shape))
        for node in nodes
    ]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
