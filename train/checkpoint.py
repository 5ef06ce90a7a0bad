"""A run's checkpoint on disk: one file, replaced atomically, read without unpickling code."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from train import methods
from train.config import FitConfig
from train.errors import CheckpointError
from train.networks import Critic, Encoder, Generator, Locator

CHECKPOINT_FILE = "checkpoint.pt"
BEST_FILE = "best.pt"
FORMAT = 5


@dataclass(frozen=True)
class Trained:
    """What a run has learned so far.

    Attributes:
        encoder: E with averaged weights, float32, on the CPU, in evaluation mode.
        generator: G, likewise.
        critic: D with its last weights.
        locator: L with averaged weights; None if the run has none.
        config: the run's settings.
        colour: what the training images were.
        images: the training images' paths.
        held_out: paths of good images that were not trained on.
        fingerprint: sha256 over the training data.
        step: training steps done.
        seconds: time spent on them.
        history: recorded losses, one dict every few steps: ``step``, ``seconds`` and losses by name.
        selected_auroc: best image auROC on the TEST set, when ``protocol`` is ``paper`` and chose the weights.
    """

    encoder: Encoder
    generator: Generator
    critic: Critic
    locator: Locator | None
    config: FitConfig
    colour: Literal["rgb", "gray"]
    images: list[Path]
    held_out: list[Path]
    fingerprint: str
    step: int
    seconds: float
    history: list[dict[str, float]]
    selected_auroc: float | None


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that a crash at any moment leaves either the old file or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote.

    Raises:
        CheckpointError: missing, damaged or written by a newer version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here; is {path.parent} the --out of `station-train fit`?")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises whatever its unpickler or zip reader stumbles over.
        raise CheckpointError(f"{path}: damaged, or no checkpoint of station-train: {error}") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {state.get('format')}, this version reads {FORMAT}")
    return state


def load_trained(run: Path) -> Trained:
    """The networks of a run, ready for inference.

    With ``protocol: paper`` these are the weights with the best test auROC, else the last ones.

    Raises:
        CheckpointError: no usable checkpoint.
    """
    best = run / BEST_FILE
    state = load(best if best.is_file() else run / CHECKPOINT_FILE)
    config = FitConfig.model_validate_json(state["config"])
    arch = config.architecture
    method = methods.load(config.method)
    encoder, generator, critic = method.encoder(arch), Generator(arch), method.critic(arch)
    encoder.load_state_dict(state["ema_encoder"])
    generator.load_state_dict(state["ema_generator"])
    critic.load_state_dict(state["critic"])
    locator = Locator(arch) if config.locator else None
    if locator is not None:
        locator.load_state_dict(state["ema_locator"])
    for module in (encoder, generator, critic, *([] if locator is None else [locator])):
        module.eval().requires_grad_(requires_grad=False)
    return Trained(
        encoder=encoder,
        generator=generator,
        critic=critic,
        locator=locator,
        config=config,
        colour=state["colour"],
        images=[Path(p) for p in state["images"]],
        held_out=[Path(p) for p in state["held_out"]],
        fingerprint=state["fingerprint"],
        step=state["step"],
        seconds=state["seconds"],
        history=state["history"],
        selected_auroc=state["selected_auroc"],
    )
