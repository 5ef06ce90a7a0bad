"""Settings of a training run, and the presets."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.manifest import Preprocessing
from train import methods
from train.architecture import FEATURE_LAYERS, IMAGE_SIZE, Architecture

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
PRESETS = ("default", "reference", "paper")


class FitConfig(BaseModel):
    """Everything that decides what a run computes; stored in its checkpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    preset: str = "default"
    method: str = Field(default="cbigan", description="One of train.methods, which says in what it differs.")
    category: Literal["texture", "object"] = "texture"

    # Images. frame_size is (height, width).
    frame_size: tuple[int, int] | None = None
    scale: Positive = 1.0
    stride: int | None = Field(default=None, ge=1, description="Step between patches when scoring; null: no overlap.")
    colour: Literal["auto", "rgb", "gray"] = "auto"
    rotate: tuple[float, float] = Field(
        default=(0.0, 0.0), description="Random rotation of training patches, degrees counter-clockwise."
    )
    flip: bool = Field(default=False, description="Random mirroring, left-right and up-down.")

    holdout: Unit = Field(
        default=0.15,
        lt=1,
        description="Share of the images that is not trained on: at export they tell what good material scores.",
    )

    # Networks.
    width: int = Field(default=8, ge=1, le=256)
    latent_size: int = Field(default=64, ge=1)
    bias: bool = True
    folded: bool = Field(
        default=True, description="First and last stage of the networks at half the resolution; false: as in the paper."
    )
    locator: bool = Field(
        default=True, description="Train on planted defects, and judge frames by a locator's map instead of A(x)."
    )
    smoothing: Positive = Field(default=5.0, description="Deviation of the Gaussian over the locator's map, pixels.")

    # Losses and score.
    alpha: Unit = Field(default=1e-2, description="Weight of the consistency loss in the adversarial phase, eq. 13.")
    lambda_: Unit = Field(default=0.1, alias="lambda", description="Weight of the feature error in A(x), eq. 7.")
    feature_layer: str = "block0.conv1"
    gp_weight: Positive = 10.0

    # Optimisation. The warm start trains E and G to reconstruct images, before D joins (f-AnoGAN: E, after D has left).
    warm_start: Unit = Field(default=0.8, description="Share of the budget spent on the warm start.")
    warm_lr: Positive = 1e-3
    locator_lr: Positive = Field(default=2e-3, description="Rate of the locator; its cosine spans the whole budget.")
    lr: Positive = 3e-4
    final_lr: Unit = Field(
        default=0.05, description="Share of each phase's rate that its cosine ends with; 1: constant."
    )
    betas_ge: tuple[Beta, Beta] = (0.9, 0.999)
    betas_d: tuple[Beta, Beta] = (0.0, 0.9)
    adam_eps: Positive = 1e-7
    d_iter: int = Field(
        default=0, ge=0, description="Critic steps per step of E and G; 0 trains all three in every step."
    )
    batch_size: int = Field(default=16, ge=1)
    ema_decay: Unit = 0.999
    ema_every: int = Field(default=1, ge=1, description="Steps between updates of the averaged weights.")

    # Budget: whichever of the two is reached first ends the run.
    steps: int | None = Field(default=None, ge=1)
    minutes: Positive | None = None
    seed: int = 0
    protocol: Literal["honest", "paper"] = Field(
        default="honest", description="'paper' keeps the weights with the best auROC on the TEST set, as published."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "FitConfig":
        if self.feature_layer not in FEATURE_LAYERS:
            raise ValueError(f"feature_layer {self.feature_layer!r} is none of {', '.join(FEATURE_LAYERS)}")
        if self.rotate[0] > self.rotate[1]:
            raise ValueError(f"rotate {self.rotate}: the first angle must not be the larger one")
        if self.category == "object" and self.frame_size is None:
            raise ValueError("objects need frame_size (128, 128)")
        values = self.model_dump(by_alias=True)
        for name, value in methods.load(self.method).settings.items():
            if values[name] != value:
                raise ValueError(f"{name} is {value} for the method {self.method}, not {values[name]}; drop the option")
        if methods.load(self.method).encoder_last and not 0 < self.warm_start < 1:
            raise ValueError(f"warm_start must leave {self.method} time for both E and G: above 0 and below 1")
        return self

    @property
    def architecture(self) -> Architecture:
        """Shape of E, G and D."""
        return Architecture(self.category, self.width, self.latent_size, self.bias, self.folded)

    @property
    def judged_by_map(self) -> bool:
        """Whether the graph has an anomaly map, and frames are judged by it."""
        return self.locator or methods.load(self.method).scorer.own_map

    def preprocessing(self, colour: Literal["rgb", "gray"]) -> Preprocessing:
        """What the station must do to frames, with the colour that the images turned out to have."""
        patch = IMAGE_SIZE[self.category]
        return Preprocessing(
            colour=colour,
            frame_size=self.frame_size,
            scale=self.scale,
            patch_size=patch,
            stride=self.stride or patch,
        )


def preset(name: str) -> dict[str, object]:
    """Settings in which a preset differs from :class:`FitConfig`'s defaults (which are the preset ``default``).

    ``reference`` is the head of the authors' repository (REFERENCE items 2, 5, 6, 7, 9); ``paper`` is what the paper's
    text states, and where it is silent the authors' code of the paper's month.
    """
    authors = {
        "bias": False,
        "folded": False,
        "locator": False,
        "holdout": 0.0,
        "warm_start": 0.0,
        "batch_size": 32,
        "lr": 1e-4,
        "final_lr": 1.0,
        "ema_every": 10,
        "feature_layer": "block0.conv1",
    }
    if name == "default":
        return {}
    if name == "reference":
        return authors | {
            "width": 3,
            "alpha": 1e-5,
            "betas_ge": (0.0, 0.1),
            "betas_d": (0.0, 0.9),
            "d_iter": 5,
            "rotate": (0.0, 360.0),
            "steps": 1_200_000,
        }
    if name == "paper":
        return authors | {
            "width": 64,
            "alpha": 1e-4,
            "gp_weight": 2.5,
            "betas_ge": (0.0, 0.099),
            "betas_d": (0.0, 0.909),
            "d_iter": 1,
            "rotate": (-45.0, 0.0),
            "steps": 200_000,
        }
    raise ValueError(f"preset {name!r} is none of {', '.join(PRESETS)}")
