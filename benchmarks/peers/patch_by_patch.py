"""The authors' way of scoring a frame, re-created, beside ours: the same weights, the same scores, other times.

Their way: PyTorch, one patch a call, E and G, then D's features of x and of G(E(x)) one after the other, every step a
module of its own, with PyTorch's own number of threads. Ours: the bundle's engines, a frame's patches together, all
cores. The networks are the paper's (preset "reference") in several widths, 3 being the authors'. Both start with uint8
patches in memory and end with A(x) of eq. 7. Before anything is timed, the scores of both must agree within 1e-4 of
their size in fp32; else the program ends with an error.

"Their frames" are shortened to a few patches and counted up, for at 64 a second of theirs would be many of ours.

    python -m benchmarks.peers.patch_by_patch --json benchmarks/results/perf_patch_by_patch.json
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import machine
from benchmarks.untrained import untrained_run
from engines.engine import EngineSettings, Float32Array, UInt8Array
from engines.opening import open_engine
from engines.openvino import library
from train.checkpoint import Trained, load_trained
from train.config import preset
from train.export import export_run

TOLERANCE = 1e-4  # relative
THEIR_PATCHES = 8  # of a frame, timed one by one


class PatchByPatch:
    """Scores patches as the authors' code does: one call each, no two steps made one.

    Args:
        trained: weights, in float32.
        feature_layer: f_D of eq. 9, by its name in :meth:`train.networks.Critic.features`.
        lambda_: weight of the feature error, eq. 7.
    """

    def __init__(self, trained: Trained, feature_layer: str, lambda_: float) -> None:
        self._encoder, self._generator, self._critic = (
            network.float().eval() for network in (trained.encoder, trained.generator, trained.critic)
        )
        self._feature_layer = feature_layer
        self._lambda = lambda_

    @torch.no_grad()
    def score(self, patch: UInt8Array) -> float:
        """A(x) of one patch, uint8 (P, P, 3)."""
        x = torch.from_numpy(patch).float().permute(2, 0, 1)[None] / 127.5 - 1
        reconstruction = self._generator(self._encoder(x))
        real = self._critic.features(x, self._feature_layer)
        fake = self._critic.features(reconstruction, self._feature_layer)
        reconstruction_error = (x - reconstruction).abs().sum()
        feature_error = (real - fake).abs().sum()
        return float((1 - self._lambda) * reconstruction_error + self._lambda * feature_error)


def compare(plain: Float32Array, own: Float32Array, what: str) -> float:
    """The largest relative difference.

    Raises:
        SystemExit: it is more than ``TOLERANCE``: then times would compare different things.
    """
    worst = float((np.abs(plain - own) / np.abs(plain)).max())
    if not worst <= TOLERANCE:
        raise SystemExit(f"{what}: scores differ by {worst:.1e}, allowed {TOLERANCE:.0e}")
    return worst


def measure(width: int, n: int, rounds: int, home: Path) -> list[dict[str, Any]]:
    """One row for each of our engines."""
    run = untrained_run(home / f"run-{width}", **preset("reference") | {"width": width, "steps": 1})
    bundle = export_run(run, home / f"width-{width}", f"width-{width}", precision="fp32")
    lambda_ = bundle.manifest.lambda_
    plain = PatchByPatch(load_trained(run), bundle.manifest.network.feature_layer, lambda_)
    P = bundle.manifest.preprocessing.patch_size
    patches = np.random.default_rng(0).integers(0, 256, (n, P, P, 3), dtype=np.uint8)
    expected = np.array([plain.score(patch) for patch in patches], np.float32)
    ways: dict[str, machine.Way] = {"patch by patch": lambda: [plain.score(patch) for patch in patches[:THEIR_PATCHES]]}
    agreement = {}
    for backend in ("onnxruntime", *["openvino"] * (library.problem() is None)):
        for precision in ("fp32", *["bf16"] * (backend == "openvino" and "BF16" in library.capabilities())):
            settings = EngineSettings.model_validate({"backend": backend, "precision": precision, "cache": home})
            engine = open_engine(bundle, settings)
            if engine.info.precision != precision:
                engine.close()
                continue
            name = f"{backend} {precision}"
            if precision == "fp32":
                agreement[name] = compare(expected, engine.score(patches).anomaly_score(lambda_), name)
            ways[name] = lambda engine=engine: engine.score(patches).anomaly_score(lambda_)
    ms = machine.in_turns(ways, rounds)
    theirs = [value * n / THEIR_PATCHES for value in ms.pop("patch by patch")]
    return [
        {
            "width": width,
            "way": name,
            "patch_by_patch_ms": machine.median(theirs),
            "ours_ms": machine.median(values),
            "times_as_fast": machine.ratio(theirs, values),
            "scores_differ_by": agreement.get(name),
        }
        for name, values in ms.items()
    ]


def show(result: dict[str, Any]) -> None:
    """The table."""
    console = machine.console()
    table = Table(title=f"{result['patches']} patches, milliseconds", box=None)
    table.add_column("width", justify="right")
    table.add_column("ours")
    for column in ("patch by patch", "ours", "times as fast", "scores differ by"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        differ = "not compared" if row["scores_differ_by"] is None else f"{row['scores_differ_by']:.1e}"
        table.add_row(
            str(row["width"]),
            row["way"],
            f"{row['patch_by_patch_ms']:.1f}",
            f"{row['ours_ms']:.1f}",
            f"{row['times_as_fast']:.1f}",
            differ,
        )
    console.print(table)
    console.print(f"PyTorch with {result['torch_threads']} threads, its own choice", soft_wrap=True)
    console.print(machine.caption(result["machine"]), soft_wrap=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--widths", type=int, nargs="+", metavar="N", default=[3, 8, 16], help="of the networks (3 8 16)"
    )
    parser.add_argument("--patches", type=int, metavar="N", default=64, help="patches a frame (64)")
    parser.add_argument("--rounds", type=int, metavar="N", default=20, help="frames of each way (20)")
    parser.add_argument("--quick", action="store_true", help="8 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    result: dict[str, Any] = {
        "machine": machine.describe([machine.all_threads()]),
        "torch_threads": torch.get_num_threads(),
        "patches": options.patches,
        "rows": [],
    }
    rounds = 8 if options.quick else options.rounds
    with (
        machine.reporting(parser, options.json, result, show),
        tempfile.TemporaryDirectory() as folder,
        Progress(console=Console(stderr=True)) as progress,
    ):
        for width in progress.track(options.widths, description="widths"):
            result["rows"] += measure(width, options.patches, rounds, Path(folder))


if __name__ == "__main__":
    main()
