"""How fast one GPU scores frames: TensorRT beside ONNX Runtime's CUDA provider and torch, all in one run on one card.

Every way starts with a frame's uint8 patches in the CPU's memory and ends with the three outputs there, so that all of
them pay for the same copies. Weights are untrained: speed does not depend on them. A way that this machine cannot run
is listed with its reason instead of a time; so is a precision that the accuracy gate refuses.

Beside the times stand three floors, from what this card does in this run: the multiplications at the rate of a large
matrix product, the activations of each layer that multiplies written and read once at the rate of a large copy, and the
frame's own bytes over the bus. The largest of them binds. Kernels that keep activations on the chip can get below the
second.

    python -m benchmarks.gpu_engines --json benchmarks/results/gpu_engines.json
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.untrained import untrained_run
from engines.bundle import Bundle
from engines.engine import EngineSettings, PatchScores, UInt8Array
from engines.errors import EngineError
from engines.opening import open_engine
from engines.selftest import OUTPUTS
from engines.tensorrt.runtime import SLOTS, Runner
from train import checkpoint
from train.export import export_run
from train.scorer import Scorer

PRECISIONS = ("fp32", "fp16", "int8")
CLOCKS = (
    "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,"
    "clocks_throttle_reasons.active"
)
WARM_UP_SECONDS = 2.0  # clocks rise and kernels are chosen

Score = Callable[[UInt8Array], object]


def untrained_bundle(folder: Path, width: int, category: str = "texture") -> Bundle:
    """A bundle of untrained weights, with a graph for every precision."""
    size = (128, 128) if category == "object" else None
    run = untrained_run(folder / "run", width=width, category=category, frame_size=size)
    return export_run(run, folder / "bundle", f"untrained-{width}", precision="int8")


def make_scorer(run: Path) -> Scorer:
    """The run's networks as the bundle has them."""
    trained = checkpoint.load_trained(run)
    return Scorer(trained.encoder, trained.generator, trained.critic, trained.config.feature_layer).float().eval()


@contextmanager
def tensorrt(bundle: Bundle, precision: str, n: int, cache: Path) -> Iterator[dict[str, Score]]:
    """TensorRT, one frame after the other and with the next frame under way meanwhile."""
    settings = EngineSettings.model_validate(
        {"backend": "tensorrt", "precision": precision, "max_patches": n, "cache": cache}
    )
    engine = open_engine(bundle, settings)
    try:
        if engine.info.precision != precision:
            raise EngineError(f"{precision} does not pass the gate, {engine.info.precision} does")
        yield {engine.info.backend_version: engine.score}
    finally:
        engine.close()


@contextmanager
def tensorrt_runner(bundle: Bundle, precision: str, n: int, cache: Path) -> Iterator[dict[str, Score]]:
    """What the engine is made of: without CUDA graphs, and with the next frame submitted before this one is done."""
    from engines.tensorrt.plans import obtain_plan  # noqa: PLC0415 - needs TensorRT, which the other ways do not

    settings = EngineSettings.model_validate(
        {"backend": "tensorrt", "precision": precision, "max_patches": n, "cache": cache}
    )
    plan, _ = obtain_plan(bundle, settings, settings.precision, lambda _phase, _share: None)
    plain, overlapped = Runner(plan, n, cuda_graphs=False), Runner(plan, n)
    under_way: deque[Any] = deque()

    def score(patches: UInt8Array) -> PatchScores | None:
        under_way.append(overlapped.submit(patches))
        return overlapped.result(under_way.popleft()) if len(under_way) == SLOTS else None

    try:
        yield {"without CUDA graph": plain.score, "two frames under way": score}
    finally:
        plain.close()
        overlapped.close()


@contextmanager
def onnxruntime_cuda(bundle: Bundle) -> Iterator[dict[str, Score]]:
    """ONNX Runtime's CUDA provider: fp32 with TF32 off."""
    import onnxruntime  # noqa: PLC0415, TID251 - engines.ort is for the CPU; engines is imported, so telemetry is off

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise EngineError("this onnxruntime has no CUDA provider (pip install onnxruntime-gpu)")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        bundle.scorer,
        options,
        providers=[("CUDAExecutionProvider", {"use_tf32": 0, "cudnn_conv_algo_search": "EXHAUSTIVE"})],
    )
    if session.get_providers()[0] != "CUDAExecutionProvider":  # it falls back to the CPU in silence
        raise EngineError("the CUDA provider cannot be loaded")
    yield {
        f"ONNX Runtime {onnxruntime.__version__} CUDA": lambda patches: session.run(list(OUTPUTS), {"patches": patches})
    }


@contextmanager
def torch_cuda(scorer: Scorer, precision: str, n: int, size: int) -> Iterator[dict[str, Score]]:
    """torch: eager, compiled, and compiled code replayed as a CUDA graph; its input is page-locked, as the engines'."""
    model = scorer.cuda().to(memory_format=torch.channels_last)
    pinned = torch.empty(n, size, size, 3, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(pinned, device="cuda")
    half = precision == "fp16"

    def forward(patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cuda", torch.float16, enabled=half):
            return tuple(output.float() for output in model(patches)[:3])

    compiled = torch.compile(forward, mode="max-autotune-no-cudagraphs")

    def run(call: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], patches: UInt8Array) -> list[Any]:
        pinned.numpy()[:] = patches
        device.copy_(pinned, non_blocking=True)
        return [output.cpu().numpy() for output in call(device)]

    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                compiled(device)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            outputs = compiled(device)

    def replay(_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        graph.replay()
        return outputs

    def inference(call: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Score:
        return torch.inference_mode()(partial(run, call))

    yield {
        "torch eager": inference(forward),
        "torch compiled": inference(compiled),
        "torch compiled, CUDA graph": inference(replay),
    }


def measure(score: Score, frames: list[UInt8Array], seconds: float) -> dict[str, float]:
    """Milliseconds a frame, p50 and p99, and frames a second over the whole time."""
    ends = time.perf_counter() + WARM_UP_SECONDS
    i = 0
    while time.perf_counter() < ends or i < 5:
        score(frames[i % len(frames)])
        i += 1
    ms: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() < started + seconds or len(ms) < 20:
        before = time.perf_counter()
        score(frames[len(ms) % len(frames)])
        ms.append(1e3 * (time.perf_counter() - before))
    spent = time.perf_counter() - started
    return {
        "p50_ms": round(float(np.median(ms)), 4),
        "p99_ms": round(float(np.quantile(ms, 0.99)), 4),
        "frames_per_second": round(len(ms) / spent, 2),
        "frames": len(ms),
    }


def card_rates() -> dict[str, float]:
    """What this card really does: FLOP/s of a large matrix product, bytes/s of a large copy and over the bus."""

    def best(work: Callable[[], object], repeats: int = 20) -> float:
        times = []
        for _ in range(repeats):
            torch.cuda.synchronize()
            before = time.perf_counter()
            work()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
        return min(times)

    n = 8192
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        a = torch.randn(n, n, device="cuda").to(dtype)
        rates[f"{name}_flops"] = 2 * n**3 / best(partial(torch.mm, a, a))
    a8 = torch.randint(-128, 127, (n, n), device="cuda", dtype=torch.int8)
    rates["int8_flops"] = 2 * n**3 / best(partial(torch._int_mm, a8, a8.t()))  # noqa: SLF001 - torch's only int8 product
    big = torch.empty(2**28, device="cuda")
    other = torch.empty_like(big)
    rates["memory_bytes"] = 2 * big.nbytes / best(lambda: other.copy_(big))
    pinned = torch.empty(2**26, pin_memory=True)
    there = torch.empty_like(pinned, device="cuda")
    rates["upload_bytes"] = pinned.nbytes / best(lambda: there.copy_(pinned))
    rates["download_bytes"] = pinned.nbytes / best(lambda: pinned.copy_(there))
    return rates


def count_work(scorer: Scorer, patch_size: int) -> tuple[int, int]:
    """FLOPs, and numbers written as activations by layers that multiply, a patch."""
    written = 0

    def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal written
        written += output.numel()

    layers = [m for m in scorer.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        scorer(torch.zeros(1, patch_size, patch_size, 3, dtype=torch.uint8))
    for handle in handles:
        handle.remove()
    return counter.get_total_flops(), written


def floors(work: tuple[int, int], n: int, patch_size: int, precision: str, rates: dict[str, float]) -> dict[str, float]:
    """The least that a frame of ``n`` patches can take, milliseconds."""
    flops, written = work
    itemsize = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    up, down = n * patch_size**2 * 3, n * (patch_size**2 + 2) * 4
    return {
        "arithmetic_ms": round(1e3 * n * flops / rates[f"{precision}_flops"], 4),
        "memory_ms": round(1e3 * 2 * n * written * itemsize / rates["memory_bytes"], 4),
        "bus_ms": round(1e3 * (up / rates["upload_bytes"] + down / rates["download_bytes"]), 4),
    }


def nvidia_smi() -> dict[str, str]:
    """Card, driver, clocks, temperature and what throttles it, at this moment."""
    text = subprocess.run(
        ["nvidia-smi", "--id=0", f"--query-gpu={CLOCKS}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return dict(zip(CLOCKS.split(","), (value.strip() for value in text.split(",")), strict=True))


def run(widths: list[int], n: int, seconds: float, result: dict[str, Any]) -> None:
    """Measure all ways; fills ``result`` as it goes, so that Ctrl-C keeps what is there."""
    rates = card_rates()
    result["rates"] = {name: float(f"{rate:.4g}") for name, rate in rates.items()}
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("", total=len(widths) * (2 * len(PRECISIONS) + 3))
        for width in widths:
            home = Path(folder, str(width))
            progress.update(task, description=f"width {width}: export")
            bundle = untrained_bundle(home, width)
            scorer = make_scorer(home / "run")
            P = bundle.manifest.preprocessing.patch_size
            work = count_work(scorer, P)
            rng = np.random.default_rng(0)
            frames = [rng.integers(0, 256, (n, P, P, 3), dtype=np.uint8) for _ in range(8)]
            ways: list[tuple[str, str, Any]] = []
            for precision in PRECISIONS:
                ways.append(("TensorRT", precision, tensorrt(bundle, precision, n, home)))
                ways.append(("TensorRT runner", precision, tensorrt_runner(bundle, precision, n, home)))
            ways.append(("ONNX Runtime CUDA", "fp32", onnxruntime_cuda(bundle)))
            ways += [("torch", precision, torch_cuda(scorer, precision, n, P)) for precision in ("fp32", "fp16")]
            for kind, precision, way in ways:
                progress.update(task, description=f"width {width}: {kind} {precision}")
                row = {"width": width, "precision": precision, "floors": floors(work, n, P, precision, rates)}
                try:
                    with way as scores:
                        for name, score in scores.items():
                            measured = measure(score, frames, seconds)
                            result["rows"].append({**row, "way": name, **measured, "nvidia_smi": nvidia_smi()})
                except (EngineError, ImportError, RuntimeError) as error:
                    reason = " ".join(str(error).split())[:300]
                    result["rows"].append({**row, "way": kind, "failed": reason})
                progress.advance(task)


def show(result: dict[str, Any]) -> None:
    """The table."""
    console = Console(highlight=False)
    table = Table(title=f"{result['card']['name']}: {result['patches']} patches a frame, host to host")
    for column in ("width", "precision", "way"):
        table.add_column(column)
    for column in ("p50 ms", "p99 ms", "frames/s", "patches/s", "floor ms", "binds", "SM MHz"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        binds = max(row["floors"], key=row["floors"].get)
        head = (str(row["width"]), row["precision"], row["way"])
        floor = (f"{row['floors'][binds]:.3f}", binds.removesuffix("_ms"))
        if "failed" in row:
            table.add_row(*head, "-", "-", "-", "-", *floor, "-")
            console.print(f"{' '.join(head)}: {row['failed']}", soft_wrap=True)
            continue
        rate = row["frames_per_second"]
        times = (f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{rate:.1f}", f"{rate * result['patches']:.0f}")
        table.add_row(*head, *times, *floor, row["nvidia_smi"]["clocks.sm"])
    console.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[3, 16, 64], help="widths of the networks (3 16 64)")
    parser.add_argument("--patches", type=int, default=320, help="patches a frame (default 320: 1280 x 1024 pixels)")
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each way for (default 5)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs a GPU, its driver and a CUDA build of torch; `nvidia-smi` must list the card")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, as in TensorRT
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "card": nvidia_smi(),
        "patches": options.patches,
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "rows": [],
    }
    try:
        run(options.widths, options.patches, options.seconds, result)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; this is what was measured")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
