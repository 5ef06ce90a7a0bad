"""The daemon beside its engine: frames a second, from capture to the broker's acknowledgement, start-up, memory, CPU.

The engine alone and the whole daemon (a real `station run`, a folder of BMP frames, Mosquitto, policy `every`) take
turns; the ratio is the median of the rounds'. Then policy `latest` with a camera of 0.7 of the rate reached and an
alert now and then, a camera of ten frames a second before the default preset, the engine of the base package, and some
starts, until systemd is told READY. Last the daemon with an engine that only waits, as for a GPU: the share of the time
that it is busy is all that the other stages leave it.

    python -m benchmarks.pipeline --json benchmarks/results/pipeline.json
    python -m benchmarks.pipeline --bundle bundles/leather --size 1280x1024 --precision bf16
    python -m benchmarks.pipeline --install --rounds 0
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
from rich.progress import Progress
from rich.table import Table

from benchmarks import machine
from benchmarks.untrained import untrained
from engines.bundle import Bundle, read_bundle
from engines.engine import PRECISIONS, Engine, EngineSettings, UInt8Array
from engines.errors import EngineError
from engines.judging import Judging
from engines.opening import open_engine
from engines.tiling import Tiler
from station.commands.bench import ENGINES, LATEST_SHARE, make_textures, with_alerts
from station.commands.bench_daemon import (
    LocalBroker,
    NoBrokerError,
    Task,
    cpu_seconds,
    local_broker,
    percentiles,
    run_daemon,
    write_settings,
)
from station.commands.child import station_process
from station.commands.demo import BUNDLE
from station.commands.frames import parse_size
from station.inspection import Inspector
from station.settings import JudgeSettings

REPOSITORY = Path(__file__).resolve().parents[1]
WARM_UP = 10  # frames
FIXED_FPS = 10.0
WAITS_MS = (2.0, 5.0, 20.0)
BASE_ENGINE = "onnxruntime"  # what the package without extras comes with
BASE_FRAMES = 50
ALERT_ROOM_MS = 5.0  # beside twice the engine's time: what an alert may take from capture to its acknowledgement


class Bench:
    """One run of this benchmark, with its broker and its folder."""

    def __init__(self, bundle: Bundle, settings: EngineSettings, frames: list[UInt8Array], folder: Path) -> None:
        self.bundle, self.settings, self.frames, self.folder = bundle, settings, frames, folder
        self._runs = 0

    def engine(self, n: int) -> tuple[list[float], list[float]]:
        """Milliseconds of each of ``n`` frames in the engine alone, and the scores of the different frames."""
        manifest = self.bundle.manifest
        engine: Engine = open_engine(self.bundle, self.settings)
        try:
            inspector = Inspector(engine, Tiler(manifest.preprocessing), Judging.of(manifest), JudgeSettings())
            scores = [inspector.inspect(frame).score for frame in self.frames]
            prepared = [inspector.prepare(frame) for frame in self.frames]
            return [inspector.infer(prepared[i % len(prepared)]).ms["infer"] for i in range(n)], scores
        finally:
            engine.close()

    def new_folder(self) -> Path:
        """For one start of the daemon."""
        self._runs += 1
        return self.folder / str(self._runs)

    def daemon(self, broker: LocalBroker, n: int, task: Task, module: str = "station") -> dict[str, Any]:
        """Figures of ``n`` frames of the whole daemon."""
        return run_daemon(task, broker, self.new_folder(), WARM_UP, n, lambda: None, module).summary()

    def start_up(self, broker: LocalBroker) -> tuple[float, float]:
        """Seconds, and CPU seconds, from starting the process until it says READY."""
        folder = self.new_folder()
        config = write_settings(Task(self.bundle.path, self.settings, self.frames, "every", 20.0), broker, folder)
        address = folder / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            manager.settimeout(60)
            started = time.monotonic()
            more = {"NOTIFY_SOCKET": str(address)}
            with station_process("run", "--config", str(config), log=folder / "log", more=more) as process:
                while b"READY=1" not in manager.recv(4096):
                    pass
                seconds, cpu = time.monotonic() - started, cpu_seconds(process.pid)
                process.terminate()
        return seconds, cpu


def measure(bench: Bench, rounds: int, n: int, starts: int, result: dict[str, Any]) -> None:
    """Measure all; fills ``result`` as it goes, so that Ctrl-C keeps what is there."""
    bundle, settings, frames = bench.bundle.path, bench.settings, bench.frames
    steps = 2 * rounds + 3 + starts + len(WAITS_MS)
    with local_broker(bench.folder) as broker, Progress(console=machine.console(), transient=True) as progress:
        line = progress.add_task("", total=steps)
        result["broker"] = broker.name
        turns: list[dict[str, Any]] = []
        scores: list[float] = []
        for _ in range(rounds):
            progress.update(line, description="the engine alone")
            infer, scores = bench.engine(n)
            engine_fps = 1e3 * len(infer) / sum(infer)
            progress.update(line, description="the daemon, every", advance=1)
            every = bench.daemon(broker, n, Task(bundle, settings, frames, "every"))
            progress.advance(line)
            turns.append({"engine_fps": round(engine_fps, 2), "engine_ms": percentiles(infer), "every": every})
            ratio = statistics.median(turn["every"]["fps"] / turn["engine_fps"] for turn in turns)
            result |= {"turns": turns, "of_engine": round(ratio, 3)}
        if rounds:
            progress.update(line, description="the daemon, latest")
            fps = LATEST_SHARE * statistics.median(turn["every"]["fps"] for turn in turns)
            shown, threshold = with_alerts(frames, scores)
            latest = bench.daemon(broker, 2 * n, Task(bundle, settings, shown, "latest", fps, threshold))
            limit = ALERT_ROOM_MS + 2 * statistics.median(turn["engine_ms"]["p50"] for turn in turns)
            result["latest"] = latest | {"camera_fps": round(fps, 2), "limit_ms": round(limit, 3)}
            progress.update(line, description=f"the daemon, {FIXED_FPS:g} frames a second", advance=1)
            default = untrained(bench.folder / "untrained").path
            result["fixed"] = bench.daemon(broker, n, Task(default, settings, frames, "latest", FIXED_FPS))
            progress.update(line, description="the daemon with the base package's engine", advance=1)
            base = settings.model_copy(update={"backend": BASE_ENGINE})
            result["base"] = bench.daemon(broker, min(n, BASE_FRAMES), Task(bundle, base, frames, "every"))
            progress.advance(line)
        times = []
        for _ in range(starts):
            progress.update(line, description="starting")
            times.append(bench.start_up(broker))
            progress.advance(line)
            result["start"] = {
                "seconds": [round(seconds, 2) for seconds, _ in times],
                "cpu_seconds": [round(cpu, 2) for _, cpu in times],
            }
        result["waiting"] = []
        for wait in WAITS_MS if rounds else ():
            progress.update(line, description=f"an engine that waits {wait:g} ms")
            os.environ["BENCH_WAIT_MS"] = str(wait)
            task = Task(bundle, settings, frames, "every")
            figures = bench.daemon(broker, max(n, 200), task, "benchmarks.waiting_station")
            result["waiting"].append({"wait_ms": wait, **figures})
            progress.advance(line)


def install_size() -> dict[str, Any]:
    """Install the base package into a new environment: MiB, and how many packages."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "environment")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = environment / "bin" / "python"
        size, before = _bytes(environment), _packages(python)
        quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([python, "-m", "pip", "install", *quiet, REPOSITORY], check=True)
        grown = _bytes(environment) - size
        return {"mib": round(grown / 2**20, 1), "packages": _packages(python) - before}


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _packages(python: Path) -> int:
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    return len(listed.stdout.splitlines())


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"the daemon with {result.get('broker', 'no broker')}, {result['engine']}", box=None)
    for column, justify in (("what", "left"), ("figure", "right"), ("wanted", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    if turns := result.get("turns"):
        engine = statistics.median(turn["engine_fps"] for turn in turns)
        every = statistics.median(turn["every"]["fps"] for turn in turns)
        busy = statistics.median(turn["every"]["engine_busy"] for turn in turns)
        resident = max(turn["every"]["resident_mib"] for turn in turns)
        table.add_row("engine alone, frames/s", f"{engine:.2f}", "")
        table.add_row("daemon, every, frames/s", f"{every:.2f}", "")
        table.add_row("of the engine alone (median of the turns)", f"{result['of_engine']:.3f}", "≥ 0.95")
        table.add_row("the engine is busy (every)", f"{busy:.3f}", "")
        table.add_row(f"memory after {turns[0]['every']['frames'] + WARM_UP} frames, MiB", f"{resident:.0f}", "≤ 250")
    if base := result.get("base"):
        table.add_row("the same with ONNX Runtime, as in the base package, MiB", f"{base['resident_mib']:.0f}", "≤ 250")
    if latest := result.get("latest"):
        for what in ("received", "alert"):
            if what in latest["ms"]:
                name = {"received": "capture to score received", "alert": "capture to alert acknowledged"}[what]
                ms = latest["ms"][what]
                table.add_row(
                    f"{name}, p50 / p99 ms", f"{ms['p50']:.1f} / {ms['p99']:.1f}", f"≤ {latest['limit_ms']:.1f}"
                )
    if fixed := result.get("fixed"):
        name = f"CPUs used by the default preset at {FIXED_FPS:g} frames/s ({fixed['fps']:.1f} done)"
        table.add_row(name, f"{fixed['cpus_used']:.3f}", "")
    if start := result.get("start"):
        table.add_row("start to READY, s (median)", f"{statistics.median(start['seconds']):.2f}", "≤ 2")
        table.add_row("  of these, CPU s", f"{statistics.median(start['cpu_seconds']):.2f}", "")
    for row in result.get("waiting", ()):
        name = f"engine that waits {row['wait_ms']:g} ms: busy, frames/s"
        table.add_row(name, f"{row['engine_busy']:.3f}, {row['fps']:.1f}", "≥ 0.95")
    if install := result.get("install"):
        table.add_row(f"base install, MiB ({install['packages']} packages)", f"{install['mib']:.0f}", "")
    console = machine.console()
    console.print(table)
    console.print(machine.caption(result["machine"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, metavar="DIR", default=BUNDLE, help="the bundle (the demo's)")
    parser.add_argument("--size", metavar="WxH", default="512x512", help="of the camera's frames (512x512)")
    parser.add_argument("--engine", metavar="NAME", choices=ENGINES, default="auto", help="back end (auto)")
    parser.add_argument("--precision", metavar="NAME", choices=PRECISIONS, default="fp16", help="lowest (fp16)")
    parser.add_argument("--threads", type=int, metavar="N", default=0, help="of the engine; 0: all CPUs (0)")
    parser.add_argument("--frames", type=int, metavar="N", default=200, help="in each run (200)")
    parser.add_argument("--rounds", type=int, metavar="N", default=3, help="engine and daemon in turns (3)")
    parser.add_argument("--starts", type=int, metavar="N", default=5, help="of the daemon (5)")
    parser.add_argument("--install", action="store_true", help="also the size of the base install; takes a while")
    parser.add_argument("--quick", action="store_true", help="50 frames, 2 rounds, 3 starts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    if options.quick:
        options.frames, options.rounds, options.starts = 50, 2, 3
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    settings = EngineSettings(backend=options.engine, precision=options.precision, threads=options.threads)
    result: dict[str, Any] = {"machine": machine.describe([options.threads or machine.all_threads()])}
    try:
        bundle = read_bundle(options.bundle)
        result |= {"bundle": bundle.manifest.name, "size": options.size, "frames": options.frames}
        result["engine"] = f"{options.engine} {options.precision}, bundle {bundle.manifest.name}, {options.size}"
        frames = make_textures(*parse_size(options.size, "--size"))
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
            bench = Bench(bundle, settings, frames, Path(folder))
            measure(bench, options.rounds, options.frames, options.starts, result)
    except (EngineError, NoBrokerError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        machine.console().print("stopped; this is what was measured")
    if options.install:
        result["install"] = install_size()
    machine.write(options.json, result)
    show(result)


if __name__ == "__main__":
    main()
