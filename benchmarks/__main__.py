"""All that is told of speed, measured in one run: ``make bench``, or ``python -m benchmarks``.

Runs the quick form of every benchmark below, one after the other, and writes benchmarks/results/perf_NAME.json for
each; docs/performance.md is made of these (``PYTHONPATH=. python docs/make_performance.py``). Takes up to 25 minutes;
leave the machine alone meanwhile. What cannot run here is left out, with the reason and the way out. Ctrl-C ends the
run; what was measured stays. Give names to run only those.

    python -m benchmarks
    python -m benchmarks cpu_engines peers
    python -m benchmarks --full many_stations
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from benchmarks import machine
from benchmarks.peers import environment

RESULTS = Path("benchmarks/results")


class Part(NamedTuple):
    """One benchmark.

    Attributes:
        name: of its JSON file, and on the command line.
        module: what is run.
        tells: in a few words.
        arguments: besides ``--quick`` and ``--json``.
    """

    name: str
    module: str
    tells: str
    arguments: tuple[str, ...] = ()


ALL = str(machine.all_threads())
PARTS = (
    Part("cpu_engines", "benchmarks.cpu_engines", "ONNX Runtime and OpenVINO, each precision", ("--threads", "1", ALL)),
    Part("graph_rewrites", "benchmarks.graph_rewrites", "what each rewrite of the graph saves"),
    Part("patches", "benchmarks.patches", "frames of few and many patches"),
    Part("patch_by_patch", "benchmarks.peers.patch_by_patch", "beside the authors' way of scoring"),
    Part("peers", "benchmarks.peers", "beside STFPM, PatchCore and EfficientAD", ("--threads", ALL)),
    Part("pipeline", "benchmarks.pipeline", "the daemon: rate, latency, start, memory"),
    Part("many_stations", "benchmarks.many_stations", "several cameras on this computer"),
    Part("train_speed", "benchmarks.train_speed", "training steps beside a plain loop", ("--threads", ALL)),
)


def missing(part: Part, env: Path) -> str | None:
    """Why a part cannot run here, and the way out; None: it can."""
    if importlib.util.find_spec(part.module) is None:
        return f"there is no {part.module}"
    if part.name == "peers" and not environment.is_installed(env):
        return f"not installed (2 GB): {environment.HOW}"
    return None


def run(part: Part, *, quick: bool) -> str:
    """Run one; how it went."""
    began = time.monotonic()
    command = [sys.executable, "-m", part.module, *part.arguments, *["--quick"] * quick]
    code = subprocess.run([*command, "--json", RESULTS / f"perf_{part.name}.json"], check=False).returncode
    spent = f"{time.monotonic() - began:.0f} s"
    return f"{spent}" if code == 0 else f"failed with exit code {code} after {spent}; what it said is above"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"run only these: {', '.join(names)}")
    parser.add_argument("--full", action="store_true", help="the full forms, which take longer")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(names)}")
    console = machine.console()
    found = machine.describe([int(ALL)])
    outcomes: dict[str, str] = {}
    failed = False
    chosen = [part for part in PARTS if not options.names or part.name in options.names]
    try:
        for part in chosen:
            if (reason := missing(part, environment.default_folder())) is not None:
                outcomes[part.name] = f"left out: {reason}"
                continue
            console.rule(f"{part.name}: {part.tells}")
            outcomes[part.name] = run(part, quick=not options.full)
            failed |= outcomes[part.name].startswith("failed")
    except KeyboardInterrupt:
        outcomes[part.name] = "stopped"
        failed = True
    table = Table(title="benchmarks", box=None)
    for column in ("", "tells", "result", "took"):
        table.add_column(column, overflow="fold")
    for part in chosen:
        outcome = outcomes.get(part.name, "not begun")
        file = RESULTS / f"perf_{part.name}.json"
        table.add_row(part.name, part.tells, str(file) if outcome.endswith(" s") else "", outcome)
    console.rule()
    console.print(table)
    console.print(machine.caption(found), soft_wrap=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
