"""What a benchmark says of the machine that it ran on, and how ways to do one thing are timed beside each other."""

import json
import os
import platform
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from engines.cpu import cpu_name
from engines.errors import EngineError

PACKAGES = ("numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")
GEMM_SIDE = 2048  # of the square matrices: three of them in float32 are 50 MB, larger than most caches


class CannotMeasureError(Exception):
    """It cannot be measured so; the message says what to do."""


Way = Callable[[], object]
K = TypeVar("K")


def describe(threads: list[int]) -> dict[str, Any]:
    """CPU, versions, threads and load; goes into the JSON of every benchmark under ``machine``."""
    found = {package.name: package.version for package in metadata.distributions() if package.name in PACKAGES}
    return {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **dict(sorted(found.items()))},
    }


def caption(machine: dict[str, Any]) -> str:
    """The same in two lines for people."""
    threads = " and ".join(map(str, machine["threads"]))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs for this process, threads: {threads}, "
        f"load at the start {machine['load']:.1f}\n{versions}"
    )


def console() -> Console:
    """For tables; wide enough for them where they go into a file."""
    wide = Console(highlight=False)
    return wide if wide.is_terminal else Console(highlight=False, width=120)


def all_threads() -> int:
    """As many as there are CPUs for this process."""
    return len(os.sched_getaffinity(0))


def gemm_peak(dtype: str, threads: int, repeats: int = 7) -> float:
    """FLOP/s of torch's product of two large square matrices, the best of ``repeats``, on the GPU where there is one.

    One thread of a CPU is measured by the CPU time that it gets, which other work on the machine shortens less.

    Args:
        dtype: ``float32`` or ``bfloat16``.
        threads: of torch on the CPU; set back afterwards.
        repeats: how often to try.
    """
    import torch  # noqa: PLC0415 - benchmarks of the station alone need none

    cuda = torch.cuda.is_available()
    n = 8192 if cuda else GEMM_SIDE
    clock = time.thread_time if threads == 1 and not cuda else time.perf_counter
    wait = torch.cuda.synchronize if cuda else lambda: None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(n, n, device="cuda" if cuda else "cpu").to(getattr(torch, dtype))
        out = torch.mm(a, a)
        seconds = []
        for _ in range(repeats):
            wait()
            start = clock()
            torch.mm(a, a, out=out)
            wait()
            seconds.append(clock() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * n**3 / min(seconds)


def in_turns(
    ways: Mapping[K, Way], rounds: int, warm_up: int = 3, on_round: Callable[[], object] = lambda: None
) -> dict[K, list[float]]:
    """Milliseconds of every way, one from each round: whatever else the machine does falls on all of them alike.

    Ctrl-C ends early with the whole rounds so far.
    """
    ms: dict[K, list[float]] = {name: [] for name in ways}
    try:
        for i in range(-warm_up, rounds):
            spent = {}
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                spent[name] = 1e3 * (time.perf_counter() - start)
            if i >= 0:
                for name, value in spent.items():
                    ms[name].append(value)
            on_round()
    except KeyboardInterrupt:
        if not all(ms.values()):
            raise
    return ms


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times as long the first took: the median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(slower, faster, strict=True)), 3)


def median(ms: list[float]) -> float:
    """To microseconds."""
    return round(statistics.median(ms), 3)


@contextmanager
def reporting(
    parser: ArgumentParser, path: Path | None, result: dict[str, Any], show: Callable[[dict[str, Any]], None]
) -> Iterator[None]:
    """Measure inside; what is in ``result`` then is written and shown, also after Ctrl-C. Known errors become words."""
    try:
        yield
    except (EngineError, CannotMeasureError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; this is what was measured")
    write(path, result)
    show(result)


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write the JSON file of ``--json``, if one is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
