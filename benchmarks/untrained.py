"""Bundles of untrained networks: speed does not depend on weights."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric

from engines.bundle import Bundle
from engines.engine import Precision
from train import checkpoint
from train.config import FitConfig
from train.data import TrainingImages, find_training_images, load_training_images
from train.export import export_run
from train.fit import Trainer


def untrained_run(folder: Path, **changes: Any) -> Path:  # noqa: ANN401 - settings of any kind
    """A run of no steps at ``folder``, of ten synthetic images; ``changes`` to the default preset."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    for i in range(10):
        image = 120 + 60 * np.sin((x + 2 * y) / 5 + i) + rng.normal(0, 8, x.shape)
        cv2.imwrite(str(images / f"{i}.png"), image.clip(0, 255).astype(np.uint8))
    config = FitConfig.model_validate({"steps": 1} | changes)
    *_, loaded = load_training_images(find_training_images(images), config)
    if not isinstance(loaded, TrainingImages):  # the last thing that it yields always is
        raise TypeError(type(loaded))
    trainer = Trainer(config, loaded, Fabric(accelerator="cpu", devices=1))
    for module in filter(None, (*trainer.averaged, trainer.critic, trainer.averaged_locator)):
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):  # those of 0 are not exported, and engines fuse other nodes
                torch.nn.init.normal_(parameter, std=0.1)
    checkpoint.save(folder / checkpoint.CHECKPOINT_FILE, trainer.state())
    return folder


def untrained(folder: Path, precision: Precision = "fp32", **changes: Any) -> Bundle:  # noqa: ANN401
    """A bundle in ``folder``, of the default preset with ``changes``; graphs down to ``precision``."""
    name = "-".join(["untrained", *(f"{key}-{value}" for key, value in changes.items())]).replace("_", "-").lower()
    return export_run(untrained_run(folder / f"{name}-run", **changes), folder / name, name, precision=precision)
