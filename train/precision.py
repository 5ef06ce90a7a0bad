"""bf16 where it pays: on GPUs that have it, and on CPUs where it measures faster."""

import time
from typing import Literal

import torch
from lightning_fabric import Fabric

from train.config import FitConfig
from train.losses import GeneratorEncoderPlayer
from train.networks import Critic, Encoder, Generator, channels_last

Precision = Literal["32-true", "bf16-mixed"]


def choose_precision(asked: Literal["auto"] | Precision, config: FitConfig) -> Precision:
    """Fabric's precision for this machine: ``asked``, or for ``auto`` the faster of float32 and bf16.

    float16 is never chosen: L1 sums over 12,288 pixels and the gradient penalty leave its range.
    """
    if asked != "auto":
        return asked
    if not has_bf16():
        return "32-true"
    if torch.cuda.is_available():
        return "bf16-mixed"
    candidates: tuple[Precision, ...] = ("32-true", "bf16-mixed")
    return min(candidates, key=lambda precision: _seconds(precision, config))


def has_bf16() -> bool:
    """Whether the GPU, or where there is none the CPU, computes in bf16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public name for this; its own inductor asks the same way.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


def _seconds(precision: Precision, config: FitConfig, steps: int = 4) -> float:
    """Time of the fastest of a few warm-start steps; which phase is timed matters little for the ratio."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    player = GeneratorEncoderPlayer(Encoder(config.architecture), Generator(config.architecture))
    module = fabric.setup_module(channels_last(player))
    size = config.architecture.image_size
    x, critic = torch.zeros(config.batch_size, 3, size, size), Critic(config.architecture)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        fabric.backward(module(x, None, 1.0, critic)["total"])
        times.append(time.perf_counter() - start)
    return min(times)
