"""How fast training steps are: this project's loop beside a plain PyTorch loop, on this machine's GPU or CPU.

Both take the same networks and losses at the same weights, and the same patches. The plain loop is what one would write
first: one step after the other, Adam without fusing, default memory layout. Medians of single steps, the ways taken in
turns, milliseconds and patches a second; the warm start and the adversarial phase apart.

    python -m benchmarks.train_speed --json benchmarks/results/train_speed.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table

from train.config import FitConfig
from train.data import TrainingImages
from train.fit import Phase, Trainer, phase_at
from train.losses import CriticPlayer, GeneratorEncoderPlayer, LocatorPlayer
from train.networks import Critic, Encoder, Generator, Locator
from train.planting import plant, relight
from train.precision import has_bf16

WARM_UP = 12  # steps: kernels are chosen, recordings made

Step = Callable[[Phase], object]


def images() -> TrainingImages:
    """Twenty frames of noise: speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (256, 256, 1), dtype=np.uint8) for _ in range(20)]
    return TrainingImages(frames, [Path(f"{i}.png") for i in range(20)], "gray", "0" * 64, [])


def plain_step(config: FitConfig, trainer: Trainer) -> Step:
    """One step as a plain PyTorch program has it; patches come from ``trainer``'s sampler."""
    device = trainer.fabric.device
    arch = config.architecture
    encoder, generator, critic, locator = (
        network(arch).to(device) for network in (Encoder, Generator, Critic, Locator)
    )
    ge, d, found = GeneratorEncoderPlayer(encoder, generator), CriticPlayer(critic), LocatorPlayer(locator)
    optimizers = [torch.optim.Adam(player.parameters(), lr=1e-4) for player in (ge, d, found)]

    def step(phase: Phase) -> None:
        n = config.batch_size
        x = trainer.sampler.sample(n, trainer.random)
        z, eps = torch.randn(n, config.latent_size, device=device), torch.rand(n, 1, device=device)
        planted = plant(relight(x, trainer.random), trainer.random)
        losses = [ge(x, None if phase.warm else z, config.alpha, critic, planted.patches)]
        if not phase.warm:
            with torch.no_grad():
                encoded, generated = encoder(x), generator(z)
            losses.append(d(x, encoded, generated, z, eps, config.gp_weight))
        with torch.no_grad():
            reconstruction = generator(encoder(planted.patches))
        losses.append(found(planted.patches, reconstruction, planted.mask))
        for optimizer in optimizers:
            optimizer.zero_grad()
        for loss in losses:
            loss["total"].backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def ways(config: FitConfig, precisions: list[str]) -> dict[str, Step]:
    """Every way to make a step, by name."""
    found: dict[str, Step] = {}
    for precision in precisions:
        fabric = Fabric(accelerator="auto", devices=1, precision=precision)  # type: ignore[arg-type]
        for record in (False, True) if fabric.device.type == "cuda" else (False,):
            trainer = Trainer(config, images(), fabric, record=record)
            name = f"this loop, {precision}{', recorded' if record else ''}"
            found[name] = trainer.advance
            if "plain loop" not in found:
                found["plain loop"] = plain_step(config, trainer)
    return found


def measure(config: FitConfig, precisions: list[str], rounds: int) -> list[dict[str, Any]]:
    """Median milliseconds a step, by phase and way."""
    rows = []
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for fraction in (config.warm_start / 2, (1 + config.warm_start) / 2):
        phase = phase_at(config, fraction)
        steps = ways(config, precisions)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for i in range(-WARM_UP, rounds):
            for name, step in steps.items():
                wait()
                start = time.perf_counter()
                step(phase)
                wait()
                if i >= 0:
                    times[name].append(time.perf_counter() - start)
        plain = statistics.median(times["plain loop"])
        for name, values in times.items():
            seconds = statistics.median(values)
            rows.append(
                {
                    "width": config.width,
                    "batch": config.batch_size,
                    "phase": phase.name,
                    "way": name,
                    "ms": round(1e3 * seconds, 2),
                    "patches_per_second": round(config.batch_size / seconds),
                    "times_plain": round(plain / seconds, 2),
                }
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[8], help="default: 8")
    parser.add_argument("--batch-size", type=int, default=16, help="default: 16")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each way; default: 20")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; default: 1")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available()
    precisions = ["32-true", *["bf16-mixed"] * has_bf16()]
    rows = []
    for width in options.width:
        config = FitConfig(width=width, batch_size=options.batch_size, steps=1000)
        rows += measure(config, precisions, options.rounds)
    device = torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()}"
    table = Table(title=f"training steps on {device}, torch {torch.__version__}, {options.threads} CPU threads")
    for heading in ("width", "phase", "way", "ms", "patches/s", "times plain"):
        table.add_column(heading, justify="left" if heading in {"phase", "way"} else "right")
    for row in rows:
        cells = (row["ms"], row["patches_per_second"], row["times_plain"])
        table.add_row(str(row["width"]), row["phase"], row["way"], *map(str, cells))
    Console(highlight=False).print(table)
    if options.json:
        result = {"device": device, "torch": torch.__version__, "threads": options.threads, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
