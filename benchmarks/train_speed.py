"""How fast training steps are: this project's loop beside a plain PyTorch loop, on this machine's GPU or CPU.

Both take the same networks and losses at the same weights, and the same patches. The plain loop is what one would write
first: one step after the other, Adam without fusing, default memory layout. Medians of single steps, the ways taken in
turns, milliseconds and patches a second; the warm start and the adversarial phase apart. "Of the peak" is the rate of
the step's multiplications and additions, by torch's own count, beside that of a large matrix product on the same device
in the same type; what is missing from 1 goes to layers that move more numbers than they multiply, and to the optimiser.

    python -m benchmarks.train_speed --json benchmarks/results/perf_train_speed.json
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import machine
from train.config import FitConfig
from train.data import TrainingImages
from train.fit import Phase, Trainer, phase_at
from train.losses import CriticPlayer, GeneratorEncoderPlayer, LocatorPlayer
from train.networks import Critic, Encoder, Generator, Locator
from train.planting import plant, relight
from train.precision import has_bf16

WARM_UP = 12  # steps: kernels are chosen, recordings made
DTYPES = {"32-true": "float32", "bf16-mixed": "bfloat16"}

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


class Counter(TorchDispatchMode):
    """Counts FLOPs by torch's own rules; its FlopCounterMode cannot, where a step takes gradients of gradients."""

    flops = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - of any operator
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops_of(step: Step, phase: Phase) -> int:
    """Multiplications and additions of one step, forward and backward."""
    with Counter() as counter:
        step(phase)
    return counter.flops


def measure(config: FitConfig, precisions: list[str], rounds: int, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Median milliseconds a step, by phase and way; ``peaks`` are FLOP/s by data type."""
    rows = []
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for fraction in (config.warm_start / 2, (1 + config.warm_start) / 2):
        phase = phase_at(config, fraction)
        steps = ways(config, precisions)
        flops = flops_of(steps["plain loop"], phase)
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
            dtype = next((DTYPES[precision] for precision in precisions if precision in name), "float32")
            rows.append(
                {
                    "width": config.width,
                    "batch": config.batch_size,
                    "phase": phase.name,
                    "way": name,
                    "ms": round(1e3 * seconds, 2),
                    "patches_per_second": round(config.batch_size / seconds),
                    "times_plain": round(plain / seconds, 2),
                    "gflop_per_step": round(flops / 1e9, 2),
                    "of_the_peak": round(flops / seconds / peaks[dtype], 3),
                }
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", metavar="N", default=[8], help="of the networks (8)")
    parser.add_argument("--batch-size", type=int, metavar="N", default=16, help="patches a step (16)")
    parser.add_argument("--rounds", type=int, metavar="N", default=20, help="steps of each way (20)")
    parser.add_argument("--threads", type=int, metavar="N", default=1, help="of the CPU (1)")
    parser.add_argument("--quick", action="store_true", help="8 steps of each way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    options.rounds = min(options.rounds, 8) if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    found = machine.describe([options.threads])
    cuda = torch.cuda.is_available()
    precisions = ["32-true", *["bf16-mixed"] * has_bf16()]
    peaks = {DTYPES[precision]: machine.gemm_peak(DTYPES[precision], options.threads) for precision in precisions}
    rows = []
    for width in options.width:
        config = FitConfig(width=width, batch_size=options.batch_size, steps=1000)
        rows += measure(config, precisions, options.rounds, peaks)
    device = torch.cuda.get_device_name() if cuda else found["cpu"]
    table = Table(title=f"training steps of {options.batch_size} patches on {device}", box=None)
    for heading in ("width", "phase", "way", "ms", "patches/s", "times plain", "of the peak"):
        table.add_column(heading, justify="left" if heading in {"phase", "way"} else "right")
    for row in rows:
        cells = (row["ms"], row["patches_per_second"], row["times_plain"], row["of_the_peak"])
        table.add_row(str(row["width"]), row["phase"], row["way"], *map(str, cells))
    console = machine.console()
    console.print(table)
    rates = ", ".join(f"{dtype} {peak / 1e9:.0f} GFLOP/s" for dtype, peak in peaks.items())
    console.print(f"the peak, a large matrix product: {rates}\n{machine.caption(found)}", soft_wrap=True)
    machine.write(
        options.json,
        {
            "machine": found,
            "device": device,
            "batch": options.batch_size,
            "peak_flops": {dtype: round(peak) for dtype, peak in peaks.items()},
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
