"""What an engine is: patches in, scores out."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

UInt8Array = NDArray[np.uint8]
Float32Array = NDArray[np.float32]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""The highest first: bf16 has fp32's range and 8 bits, fp16 has 11."""

OnProgress = Callable[[str, float], None]
"""Told what is being done and the share done, 0..1, while an engine is built; from any thread. An exception it raises
ends the build and comes out of it."""


@dataclass(frozen=True, slots=True)
class PatchScores:
    """Scores of N patches of side P, as the scorer graph returns them.

    Attributes:
        reconstruction_error: float32 (N,), L_R = ‖x - G(E(x))‖₁ summed over pixels and colours, x in [-1, 1] (eq. 8).
        feature_error: float32 (N,), L_fD = ‖f_D(x, E(x)) - f_D(G(E(x)), E(x))‖₁ (eq. 9), or the score of another
            method than CBiGAN (the manifest's ``network.method``).
        residual: float32 (N, P, P), |x - G(E(x))| averaged over colour, 0..2.
        anomaly_map: float32 (N, P, P), how little each pixel looks like good material: about 0 on it, 1 where good
            material seldom gets; a method with a map of its own has it in units of its own. None where the graph has no
            map.
    """

    reconstruction_error: Float32Array
    feature_error: Float32Array
    residual: Float32Array
    anomaly_map: Float32Array | None = None

    @classmethod
    def empty(cls, n: int, patch_size: int, *, anomaly_map: bool) -> "PatchScores":
        """Room for the scores of ``n`` patches."""
        shape = (n, patch_size, patch_size)
        return cls(
            reconstruction_error=np.empty(n, np.float32),
            feature_error=np.empty(n, np.float32),
            residual=np.empty(shape, np.float32),
            anomaly_map=np.empty(shape, np.float32) if anomaly_map else None,
        )

    def anomaly_score(self, lambda_: float) -> Float32Array:
        """A(x) = (1 - λ)·L_R + λ·L_fD (eq. 7), float32 (N,)."""
        score = (1.0 - lambda_) * self.reconstruction_error + lambda_ * self.feature_error
        return score.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs on; ends up in the log and in the ``info`` topic."""

    backend: str
    backend_version: str
    device: str
    precision: Precision
    build_key: str | None = None


def from_lowest(lowest: Precision, known: Collection[Precision]) -> list[Precision]:
    """The ``known`` precisions from ``lowest`` upwards, in the order in which they are tried."""
    allowed = PRECISIONS[: PRECISIONS.index(lowest) + 1]
    return [precision for precision in reversed(allowed) if precision in known]


class EngineSettings(BaseModel):
    """How to open an engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["auto", "onnxruntime", "openvino", "tensorrt"] = Field(
        default="auto",
        description="Which back end runs the scorer; 'auto' takes TensorRT where it and a GPU are there, else OpenVINO "
        "where it is installed, else ONNX Runtime.",
    )
    threads: int = Field(
        default=0, ge=0, le=256, description="CPU threads of the engine; 0 takes one per core available to the process."
    )
    precision: Precision = Field(
        default="fp16",
        description="Lowest precision that may serve. What the back end, the device or the bundle does not have, or "
        "what does not score like fp32 here, gives way to the next higher one: TensorRT has fp32, fp16 and int8, "
        "OpenVINO fp32, bf16 and int8, ONNX Runtime fp32.",
    )
    mode: Literal["latency", "throughput"] = Field(
        default="latency",
        description="How the threads of the openvino back end share a frame: 'latency' has all of them work on the "
        "same patches, 'throughput' on different ones: faster where frames have many patches and cores are busy.",
    )
    max_patches: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Patches that a TensorRT plan is built for; frames with more take several turns. null: whatever "
        "plan there is, else as many as a frame of the bundle's frame_size has, or 64.",
    )
    workspace_mib: int = Field(
        default=1024, ge=16, le=65536, description="Scratch memory that a TensorRT kernel may use, MiB."
    )
    cache: Path | None = Field(
        default=None,
        description="Folder of TensorRT's plans and OpenVINO's compiled models; null: $CACHE_DIRECTORY/engines under "
        "systemd, else ~/.cache/cbigan-station/engines.",
    )


class Engine(Protocol):
    """A scorer graph, loaded and ready. One thread uses it at a time."""

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""

    def score(self, patches: UInt8Array) -> PatchScores:
        """Score uint8 patches (N, P, P, 3), N >= 1.

        Raises:
            BackendError: the back end failed; the message says what to do.
            ValueError: wrong shape or dtype.
        """

    def close(self) -> None:
        """Free the device's memory. Closing twice is allowed."""
