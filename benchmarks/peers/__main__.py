"""How fast this inspects a frame beside other detectors of surface defects, all on this CPU in one run.

The peers are anomalib's STFPM and PatchCore on a ResNet-18 (2,000 features in its bank) and EfficientAD-S, exported to
OpenVINO by anomalib itself in an environment of their own. Their models are then run here, by the same OpenVINO, with
the same hint, threads and precision as ours, one frame of each in turn, so that whatever else the machine does falls on
all alike. "Times ours" is the median of the rounds' ratios at the same precision, whole frame to whole frame: from the
camera's uint8 pixels to score and map. anomalib's own inference in PyTorch takes its turns in a process of its own.

Ours is an untrained bundle of the default preset and one without the locator, judged by A(x); the peers' weights are
random as well. Speed depends on neither. How well each finds defects is not told here.

    python -m benchmarks.peers --install            once: 2 GB, minutes
    python -m benchmarks.peers --json benchmarks/results/perf_peers.json
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import machine
from benchmarks.peers import environment
from benchmarks.peers.environment import PeersError, TorchPeers
from benchmarks.untrained import untrained
from engines.bundle import Bundle
from engines.engine import EngineSettings, UInt8Array
from engines.errors import EngineError
from engines.judging import Judging
from engines.opening import open_engine
from engines.openvino import library
from engines.tiling import Tiler
from station.inspection import Inspector
from station.settings import JudgeSettings

HINTS = {"fp32": "f32", "bf16": "bf16"}
FRAMES = 4  # shown in turn, so that no cache holds the next one
OURS = {"default preset": {}, "without locator": {"locator": False}}


class What(NamedTuple):
    """What a time is of."""

    who: str
    backend: str
    precision: str
    part: str = "frame"  # of ours also "engine": from patches to their scores


Ways = dict[What, Callable[[], object]]


def peer(file: Path, precision: str, threads: int, frames: list[UInt8Array]) -> Callable[[], object]:
    """One of the peers' models, from uint8 pixels to score and map."""
    compiled = library.core().compile_model(
        str(file),
        library.DEVICE,
        {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    turn = 0

    def score() -> object:
        nonlocal turn
        turn += 1
        image = frames[turn % len(frames)].transpose(2, 0, 1)[None].astype(np.float32) * np.float32(1 / 255)
        return request.infer({0: image})

    return score


def ours(bundle: Bundle, settings: dict[str, Any], frames: list[UInt8Array]) -> dict[str, Callable[[], object]]:
    """``frame``: from uint8 pixels to score and map; ``engine``: of these, from patches to their scores.

    Raises:
        EngineError: this precision does not serve here.
    """
    engine = open_engine(bundle, EngineSettings.model_validate(settings))
    if engine.info.precision != settings["precision"]:
        engine.close()
        raise EngineError(f"{settings['precision']} is not computed here, or fails the gate")
    tiler = Tiler(bundle.manifest.preprocessing)
    inspector = Inspector(engine, tiler, Judging.of(bundle.manifest), JudgeSettings())
    patches = [tiler.patches(tiler.prepare(frame)) for frame in frames]
    turn = 0

    def next_turn() -> int:
        nonlocal turn
        turn += 1
        return turn % len(frames)

    return {
        "frame": lambda: inspector.inspect(frames[next_turn()]),
        "engine": lambda: engine.score(patches[next_turn()]),
    }


def open_ways(
    models: environment.Models, torch_peers: TorchPeers, bundles: dict[str, Bundle], threads: int, cache: Path
) -> tuple[Ways, dict[str, str]]:
    """Every way, peers and ours by turns, and the reasons of those that cannot go here."""
    rng = np.random.default_rng(0)
    size = models.facts["size"]
    frames = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(FRAMES)]
    failed: dict[str, str] = dict(models.facts["failed"])
    theirs: Ways = {}
    mine: Ways = {}
    for backend, precision in (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")):
        if precision == "bf16" and "BF16" not in library.capabilities():
            failed["bf16"] = "this CPU does not compute in it"
            continue
        for name, file in models.files.items() if backend == "openvino" else ():
            theirs[What(name, backend, precision)] = peer(file, precision, threads, frames)
        for name, bundle in bundles.items():
            settings = {"backend": backend, "precision": precision, "threads": threads, "cache": cache}
            try:
                for part, way in ours(bundle, settings, frames).items():
                    mine[What(name, backend, precision, part)] = way
            except EngineError as error:
                failed[f"{name}, {backend} {precision}"] = str(error)
    for name in models.files:
        theirs[What(name, "torch", "fp32")] = lambda name=name: torch_peers.score(name)
    return dict(pair for pairs in zip_longest(theirs.items(), mine.items()) for pair in pairs if pair), failed


def rows_of(ms: dict[What, list[float]]) -> list[dict[str, Any]]:
    """A row for each way; a peer's says how many times as long as ours a whole frame takes it."""
    rows: list[dict[str, Any]] = []
    for what in sorted(ms, key=lambda what: (what.who in OURS, what)):
        row: dict[str, Any] = {
            **what._asdict(),
            "p50_ms": machine.median(ms[what]),
            "least_ms": round(min(ms[what]), 3),
        }
        if what.who not in OURS:
            beside = {own: ms.get(What(own, "openvino", what.precision)) for own in OURS}
            row["times_ours"] = {own: machine.ratio(ms[what], other) for own, other in beside.items() if other}
        rows.append(row)
    return rows


def show(result: dict[str, Any]) -> None:
    """The table."""
    console = machine.console()
    size = result["size"]
    table = Table(title=f"a frame of {size} x {size} pixels, milliseconds", box=None)
    for column in ("", "back end", "precision", "part"):
        table.add_column(column)
    for column in ("p50", "least", *(f"times ours,\n{own}" for own in OURS)):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        ratios = [f"{row['times_ours'][own]:.2f}" if own in row.get("times_ours", {}) else "" for own in OURS]
        head = [row[key] for key in What._fields]
        table.add_row(*head, f"{row['p50_ms']:.1f}", f"{row['least_ms']:.1f}", *ratios)
    console.print(table)
    for name, reason in result["failed"].items():
        console.print(f"{name}: {reason}", soft_wrap=True)
    peers = ", ".join(f"{package} {version}" for package, version in result["peers"].items())
    console.print(f"peers exported by {peers}\n{machine.caption(result['machine'])}", soft_wrap=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install the peers first, if they are not")
    parser.add_argument(
        "--index", metavar="URL", help="of torch's builds for the CPU, where pip would fetch those for CUDA"
    )
    parser.add_argument(
        "--env",
        type=Path,
        metavar="DIR",
        default=environment.default_folder(),
        help="where the peers are, or shall be, installed (%(default)s)",
    )
    parser.add_argument("--size", type=int, metavar="N", default=512, help="side of the frames, pixels (512)")
    parser.add_argument(
        "--threads", type=int, metavar="N", default=machine.all_threads(), help="of every engine (one per CPU)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=20, help="frames of each way (20)")
    parser.add_argument("--quick", action="store_true", help="8 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    if (problem := library.problem()) is not None:
        parser.exit(1, f"this needs OpenVINO: {problem}\n")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    console = Console(stderr=True)
    result: dict[str, Any] = {"machine": machine.describe([options.threads]), "size": options.size}
    try:
        if options.install:
            environment.install(options.env, options.index)
        with console.status("exporting the peers, once"):
            models = environment.export(options.env, options.size)
        with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
            home = Path(folder)
            bundles = {name: untrained(home, **changes) for name, changes in OURS.items()}
            torch_peers = TorchPeers(options.env, options.size, options.threads)
            try:
                ways, failed = open_ways(models, torch_peers, bundles, options.threads, home)
                rounds, warm_up = 8 if options.quick else options.rounds, 2
                task = progress.add_task("rounds", total=rounds + warm_up)
                ms = machine.in_turns(ways, rounds, warm_up, lambda: progress.advance(task))
            finally:
                torch_peers.close()
    except PeersError as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped before there was anything to show\n")
    result |= {"peers": models.facts["versions"], "failed": failed, "rows": rows_of(ms)}
    machine.write(options.json, result)
    show(result)


if __name__ == "__main__":
    main()
