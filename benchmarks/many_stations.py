"""What one computer carries: several stations on it at once, each a real `station run` with a camera of its own.

For 1, 2, 4 and 8 stations, with engines of one thread and of one for each CPU, on one real Mosquitto: first at full
speed (folders of JPEGs over and over, no frame dropped), then at a pace of which they take 60 % of that together, as
live cameras would ("latest" drops what is late). Measured from outside, by a subscriber and by /proc: frames and
patches a second of all together, the slowest station's share of the fastest's rate, from capture to the arrival of the
score, and the CPU time that a frame costs with everything: reading, decoding, judging, publishing. "times one" is that
cost beside a single station's: 1.0 is a cost that grows no faster than the number of stations.

    python -m benchmarks.many_stations --json benchmarks/results/perf_many_stations.json
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typing_extensions import Self

from benchmarks import machine
from benchmarks.untrained import untrained
from engines.bundle import Bundle, read_bundle
from engines.tiling import Tiler
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.station_process import StationProcess

IMAGES = 16  # in a station's folder
WARM_UP_SCORES = 5  # of each station, before anything counts
START_TIMEOUT = 180.0  # seconds
PACED_SHARE = 0.6  # of the rate at full speed
TICKS = os.sysconf("SC_CLK_TCK")

SETTINGS = """\
bundle = {bundle}
state = "state-{name}"

[station]
name = "{name}"

[camera]
url = {url}
loop = true
policy = "{policy}"
{fps}

[engine]
threads = {threads}

[judge]
threshold = 1e9

[mqtt]
host = "{host}"
port = {port}

[log]
level = "warning"
"""


class Heard(NamedTuple):
    """One score message."""

    arrived: float  # seconds since the epoch
    captured: float
    frame: int


class Listener:
    """Hears the scores of all stations, by station."""

    def __init__(self, port: int) -> None:
        self._lock = threading.Lock()
        self._heard: dict[str, list[Heard]] = defaultdict(list)
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("station/v1/+/+/+/score")
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._take
        self._port = port

    def _take(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        arrived, score = time.time(), json.loads(message.payload)
        heard = Heard(arrived, datetime.fromisoformat(score["captured_at"]).timestamp(), score["frame"])
        with self._lock:
            self._heard[message.topic.split("/")[-2]].append(heard)

    def since(self, moment: float) -> dict[str, list[Heard]]:
        """What arrived since then, by station."""
        with self._lock:
            return {name: [one for one in heard if one.arrived >= moment] for name, heard in self._heard.items()}

    def __enter__(self) -> Self:
        self._client.connect(HOST, self._port)
        self._client.loop_start()
        self._subscribed.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def write_images(folder: Path, size: int) -> Path:
    """Grainy JPEGs of ``size`` × ``size`` pixels, as cameras send them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        cv2.imwrite(str(folder / f"{i:02}.jpg"), cv2.blur(rng.integers(0, 256, (size, size, 3), np.uint8), (3, 3)))
    return folder


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has had so far, of all its threads."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS


def resident_mib(pid: int) -> float:
    """Memory that it has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def summarize(heard: dict[str, list[Heard]], cpu: list[float], seconds: float, patches: int) -> dict[str, Any]:
    """What a window of ``seconds`` came to; ``cpu`` is what each process had of it."""
    counts = {name: len(scores) for name, scores in heard.items()}
    total = sum(counts.values())
    if not all(counts.values()):
        silent = ", ".join(sorted(name for name, n in counts.items() if not n))
        raise machine.CannotMeasureError(f"not one frame in {seconds:.0f} s from {silent}; give --seconds more")
    latency = np.array([one.arrived - one.captured for scores in heard.values() for one in scores]) * 1e3
    frames = sum(scores[-1].frame - scores[0].frame + 1 for scores in heard.values())
    return {
        "frames_per_second": round(total / seconds, 2),
        "patches_per_second": round(total * patches / seconds, 1),
        "slowest_to_fastest": round(min(counts.values()) / max(counts.values()), 3),
        "latency_p50_ms": round(float(np.median(latency)), 1),
        "latency_p99_ms": round(float(np.quantile(latency, 0.99)), 1),
        "cpu_ms_per_frame": round(1e3 * sum(cpu) / total, 2),
        "dropped_share": round(1 - total / frames, 3),
    }


def run_stations(
    home: Path, images: Path, bundle: Bundle, size: int, n: int, threads: int, seconds: float, fps: float | None
) -> dict[str, Any]:
    """``n`` stations for ``seconds``; with ``fps`` at that pace each, else at full speed."""
    patches = Tiler(bundle.manifest.preprocessing).grid((size, size)).n
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=home)))
        broker = stack.enter_context(Mosquitto(folder))
        listener = stack.enter_context(Listener(broker.port))
        stations = []
        for i in range(n):
            config = folder / f"station-{i}.toml"
            config.write_text(
                SETTINGS.format(
                    bundle=json.dumps(str(bundle.path)),
                    name=f"camera-{i}",
                    url=json.dumps(f"folder:{images}"),
                    policy="latest" if fps else "every",
                    fps=f"fps = {fps:.3f}" if fps else "",
                    threads=threads,
                    host=HOST,
                    port=broker.port,
                )
            )
            cache = {"XDG_CACHE_HOME": str(home / "cache")}
            stations.append(stack.enter_context(StationProcess(config, folder / f"{i}.log", **cache)))
        wait_until_warm(listener, stations, n)
        pids = [station.process.pid for station in stations]
        began, before = time.time(), [cpu_seconds(pid) for pid in pids]
        time.sleep(seconds)
        cpu = [cpu_seconds(pid) - had for pid, had in zip(pids, before, strict=True)]
        spent = time.time() - began
        return {
            "stations": n,
            "threads": threads,
            "pace": round(fps, 2) if fps else None,
            **summarize(listener.since(began), cpu, spent, patches),
            "resident_mib": round(max(map(resident_mib, pids)), 1),
        }


def wait_until_warm(listener: Listener, stations: list[StationProcess], n: int) -> None:
    """Until each has sent a few scores."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        heard = listener.since(0)
        if len(heard) == n and all(len(scores) >= WARM_UP_SCORES for scores in heard.values()):
            return
        ended = next((station for station in stations if station.process.poll() is not None), None)
        if ended is not None or time.monotonic() > deadline:
            log = "".join(station.log[-1000:] for station in stations)
            raise machine.CannotMeasureError(
                f"not all stations inspect after {START_TIMEOUT:.0f} s, or one has ended:\n{log}"
            )
        time.sleep(0.05)


def measure(bundle: Bundle, options: argparse.Namespace, home: Path, result: dict[str, Any]) -> None:
    """Fills ``result`` as it goes, so that Ctrl-C keeps what is there."""
    images = write_images(home / "images", options.size)
    cases = [(threads, n) for threads in options.threads for n in options.stations]
    costs: dict[tuple[int, bool], float] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=2 * len(cases))
        for threads, n in cases:
            fps: float | None = None
            for paced in (False, True):
                progress.update(
                    task, description=f"{n} stations, threads: {threads}, {'paced' if paced else 'full speed'}"
                )
                row = run_stations(home, images, bundle, options.size, n, threads, options.seconds, fps)
                cost = row["cpu_ms_per_frame"]
                row["cost_times_one"] = round(cost / costs.setdefault((threads, paced), cost), 3)
                result["rows"].append(row)
                fps = PACED_SHARE * row["frames_per_second"] / n
                progress.advance(task)


def show(result: dict[str, Any]) -> None:
    """The table."""
    console = machine.console()
    table = Table(title=f"stations with frames of {result['size']} x {result['size']} pixels", box=None)
    columns = ("stations", "threads", "pace", "frames/s", "patches/s", "slowest/\nfastest", "p50 ms", "p99 ms")
    for column in (*columns, "CPU ms\na frame", "times\none", "dropped", "MiB"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            str(row["stations"]),
            str(row["threads"]),
            f"{row['pace']:.1f}/s" if row["pace"] else "full",
            f"{row['frames_per_second']:.1f}",
            f"{row['patches_per_second']:.0f}",
            f"{row['slowest_to_fastest']:.2f}",
            f"{row['latency_p50_ms']:.0f}",
            f"{row['latency_p99_ms']:.0f}",
            f"{row['cpu_ms_per_frame']:.1f}",
            f"{row['cost_times_one']:.2f}",
            f"{row['dropped_share']:.0%}",
            f"{row['resident_mib']:.0f}",
        )
    console.print(table)
    peak = result["gemm_flops_one_thread"] / 1e9
    console.print(f"bundle {result['bundle']}; a large matrix product here: {peak:.0f} GFLOP/s on one thread, fp32")
    console.print(machine.caption(result["machine"]), soft_wrap=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="measure this one instead of an untrained one of the default preset"
    )
    parser.add_argument("--stations", type=int, nargs="+", metavar="N", help="how many at once (1 2 4 8; quick: 1 2 4)")
    every = machine.all_threads()
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        metavar="N",
        default=sorted({1, every}),
        help="of each engine (1, and one per CPU)",
    )
    parser.add_argument("--size", type=int, metavar="N", default=512, help="side of the frames, pixels (512)")
    parser.add_argument("--seconds", type=float, metavar="S", help="to measure each case for (8; quick: 4)")
    parser.add_argument("--quick", action="store_true", help="fewer stations, for less long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    options.stations = options.stations or ([1, 2, 4] if options.quick else [1, 2, 4, 8])
    options.seconds = options.seconds or (4.0 if options.quick else 8.0)
    if not shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"):
        parser.exit(1, "this needs Mosquitto: apt-get install mosquitto\n")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    result: dict[str, Any] = {
        "machine": machine.describe(options.threads),
        "gemm_flops_one_thread": round(machine.gemm_peak("float32", 1)),
        "size": options.size,
        "rows": [],
    }
    with machine.reporting(parser, options.json, result, show), tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        bundle = read_bundle(options.bundle) if options.bundle else untrained(home)
        result["bundle"] = bundle.manifest.name
        result["patches"] = Tiler(bundle.manifest.preprocessing).grid((options.size, options.size)).n
        measure(bundle, options, home, result)


if __name__ == "__main__":
    main()
