"""``manifest.json``: what a bundle says about itself. See docs/bundle.md."""

import re
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_VERSION: Final = 1
MANIFEST_FILE = "manifest.json"
SCORER_FILE = "scorer.onnx"
SELFTEST_FILE = "selftest.npz"
FP16_SCORER_FILE = "scorer.fp16.onnx"
INT8_SCORER_FILE = "scorer.int8.onnx"
CALIBRATION_FILE = "calibration.npz"
MODEL_CARD_FILE = "MODEL_CARD.md"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_PLAIN_FILE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class Preprocessing(_Model):
    """How a camera frame becomes patches. The tiler follows it; scaling to ``value_range`` is in the graph."""

    colour: Literal["rgb", "gray"] = Field(
        description="Colour of the training images. 'gray' frames are turned gray and repeated to 3 channels."
    )
    frame_size: tuple[Annotated[int, Field(ge=16, le=16384)], Annotated[int, Field(ge=16, le=16384)]] | None = Field(
        default=None, description="(height, width) every frame is resized to; null keeps its size."
    )
    scale: float = Field(default=1.0, gt=0, le=8, description="Fixed scale of the frame when frame_size is null.")
    patch_size: int = Field(ge=16, le=1024, description="Side of the square patches, pixels.")
    stride: int = Field(ge=1, description="Step between patches, pixels; less than patch_size overlaps.")
    value_range: tuple[float, float] = Field(
        default=(-1.0, 1.0), description="Range that the graph maps uint8 0..255 to (u8 / 127.5 - 1)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Preprocessing":
        if self.stride > self.patch_size:
            raise ValueError(f"stride {self.stride} > patch_size {self.patch_size} would leave pixels uninspected")
        if self.frame_size is not None:
            if self.scale != 1.0:
                raise ValueError("frame_size and scale exclude each other")
            if min(self.frame_size) < self.patch_size:
                raise ValueError(f"frame_size {self.frame_size} is smaller than the patch ({self.patch_size})")
        return self


class Network(_Model):
    """Shape of E, G and D (paper, section V.B and fig. 3), and what they were trained as."""

    method: str = Field(
        default="cbigan",
        pattern=r"^[a-z0-9][a-z0-9-]{0,31}$",
        description="--method of station-train fit. Others than 'cbigan' may put a score of their own into "
        "feature_error and anomaly_map.",
    )
    width: int = Field(ge=1, le=256, description="Filters of the first block; blocks are width x (1,2,3,4,8,16).")
    folded: bool = Field(
        default=False, description="First and last stage at half the resolution (docs/decisions/0071); false: paper."
    )
    latent_size: int = Field(ge=1, le=4096)
    feature_layer: str = Field(
        description="Layer of D that gives f_D of eq. 9; 'block0.conv1' is the authors' (REFERENCE: linear)."
    )


Row = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1, max_length=64)]
Rows = Annotated[tuple[Row, ...], Field(min_length=1, max_length=64)]


class Standards(_Model):
    """What the smoothed anomaly map of good frames looks like, by place in the frame.

    Vignetting, the rim of a part or a seam that every frame shows is no defect: the map is judged in deviations from
    what its place is used to. Both are on one coarse grid over the frame (its ROI), from top left, row by row.
    """

    mean: Rows
    deviation: Rows
    n_frames: int = Field(
        ge=2, description="Good frames that they were measured on: held out from training, unless there were few."
    )
    medians: tuple[float, float] | None = Field(
        default=None,
        description="Lowest and highest median to be expected of a good frame's standardised map. A map is judged less "
        "its own median, as far as that lies between them: what a frame shares all over is no defect. null: as it is.",
    )

    @model_validator(mode="after")
    def _grid(self) -> "Standards":
        shapes = {tuple(map(len, rows)) for rows in (self.mean, self.deviation)}
        if len(shapes) != 1 or len(set(*shapes)) != 1:
            raise ValueError("mean and deviation must be on the same rectangular grid")
        if min(map(min, self.deviation)) <= 0:
            raise ValueError("deviations must be above 0")
        if self.medians is not None and self.medians[0] > self.medians[1]:
            raise ValueError("the lowest median comes first")
        return self


class Tensor(_Model):
    """Name, dtype and shape of one graph input or output; -1 is the dynamic number of patches."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int, ...]


class Training(_Model):
    """Where the weights come from, in short; MODEL_CARD.md tells it at length."""

    data_fingerprint: Sha256 = Field(description="sha256 over the sorted (name, size, content hash) of all images.")
    n_images: int = Field(ge=1)
    steps: int = Field(ge=0)
    seconds: float = Field(ge=0)
    seed: int
    preset: str
    metrics: dict[str, float] = Field(default_factory=dict, description="Final losses, by name.")


class Description(_Model):
    """What a bundle says about itself, without its table of contents."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    created_at: datetime = Field(description="UTC")
    category: Literal["texture", "object"]
    preprocessing: Preprocessing
    network: Network
    alpha: float = Field(ge=0, le=1, description="Weight of the consistency loss, eq. 13.")
    lambda_: float = Field(alias="lambda", ge=0, le=1, description="Weight of the feature error, eq. 7.")
    smoothing: float | None = Field(
        default=None,
        gt=0,
        le=256,
        description="The graph gives an anomaly_map; a frame is judged by it, smoothed by a Gaussian of this standard "
        "deviation (prepared pixels). null: by A(x) of its patches, eq. 7.",
    )
    standards: Standards | None = Field(
        default=None, description="By which the smoothed map is standardised before it is judged; null: not."
    )
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    training: Training

    @field_validator("created_at")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        offset = value.utcoffset()
        if offset is None or offset.total_seconds() != 0:
            raise ValueError("created_at must be in UTC")
        return value

    @model_validator(mode="after")
    def _patches_in_scores_out(self) -> "Description":
        wanted = scorer_tensors(self.preprocessing.patch_size, anomaly_map=self.smoothing is not None)
        if self.standards is not None and self.smoothing is None:
            raise ValueError("standards are for an anomaly map, which needs smoothing")
        if (self.inputs, self.outputs) != wanted:
            raise ValueError(
                "inputs and outputs are not those of a scorer of "
                f"{self.preprocessing.patch_size} x {self.preprocessing.patch_size} patches"
            )
        return self


class Manifest(Description):
    """The description and the table of contents; its own sha256 identifies the bundle."""

    files: dict[str, Sha256] = Field(description="sha256 of every other file of the bundle, by name.")

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not _PLAIN_FILE_NAME.match(name) or name == MANIFEST_FILE:
                raise ValueError(f"{name!r} is not a plain file name inside the bundle")
        for needed in (SCORER_FILE, SELFTEST_FILE):
            if needed not in files:
                raise ValueError(f"{needed} is not listed")
        return files


def scorer_tensors(patch_size: int, *, anomaly_map: bool = False) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs that every scorer graph has, patches in and scores out; the map where it has a locator."""
    of_pixels = ("residual", "anomaly_map") if anomaly_map else ("residual",)
    return (
        (Tensor(name="patches", dtype="uint8", shape=(-1, patch_size, patch_size, 3)),),
        (
            Tensor(name="reconstruction_error", dtype="float32", shape=(-1,)),
            Tensor(name="feature_error", dtype="float32", shape=(-1,)),
            *(Tensor(name=name, dtype="float32", shape=(-1, patch_size, patch_size)) for name in of_pixels),
        ),
    )
