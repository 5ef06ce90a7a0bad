"""Endurance: the real daemon at full speed for long, while its camera drops and its broker restarts.

Two runs: ten minutes of the bundled engine on the demo's line, and as many frames as a camera takes in a week at one
frame a second, on a tiny model and as fast as they come. Sampled every second: resident memory, file descriptors,
threads, the outbox's files, the queues. Nothing of that may grow.

    python -m benchmarks.soak
    python -m benchmarks.soak --minutes 1 --frames 20000
"""

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typing_extensions import Self

from station.commands.demo import BUNDLE
from station.demo.sample_line import SampleLine
from tests.support.bundles import GREY, make_bundle
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, Mosquitto, Subscriber
from tests.support.plant import Ledger
from tests.support.station_process import StationProcess

WEEK = 7 * 24 * 3600  # frames at one a second
WARM_UP = 0.2  # share of the run after which memory counts: caches and thread stacks fill before
DISTURB_EVERY = 15.0  # seconds between two disturbances
MAX_FPS = 2000

SETTINGS = """\
bundle = {bundle}
state = "state"

[camera]
url = "{url}"
policy = "every"
read_timeout = 2
reconnect_max = 0.5

[judge]
threshold = {threshold}

[mqtt]
host = "{host}"
port = {port}

[outbox]
max_mib = 16

[health]
interval = 1

[log]
level = "warning"
"""


@dataclass
class Sample:
    """The daemon at one moment."""

    seconds: float
    frames: int
    resident_mib: float
    descriptors: int
    threads: int
    outbox_mib: float
    queued: dict[str, int] = field(default_factory=dict)


class Watcher:
    """Looks at the process from outside, and at what it says on ``health``."""

    def __init__(self, process: StationProcess, subscriber: Subscriber, state: Path) -> None:
        self._proc = Path("/proc") / str(process.process.pid)
        self._subscriber = subscriber
        self._state = state
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    def look(self) -> int:
        """Take a sample; returns the frames inspected so far."""
        said = self._subscriber.on("/health")
        health = json.loads(said[-1]) if said else {"inspected": 0, "queued": {}}
        status = dict(
            line.split(":\t", 1) for line in (self._proc / "status").read_text().splitlines() if ":\t" in line
        )
        outbox = sum(path.stat().st_size for path in self._state.glob("outbox.db*"))
        self.samples.append(
            Sample(
                seconds=round(time.monotonic() - self._began, 1),
                frames=health["inspected"],
                resident_mib=int(status["VmRSS"].split()[0]) / 1024,
                descriptors=len(list((self._proc / "fd").iterdir())),
                threads=int(status["Threads"]),
                outbox_mib=round(outbox / 2**20, 3),
                queued=health["queued"],
            )
        )
        return int(health["inspected"])


class Disturbance:
    """Drops the camera, stalls it, kills and restarts the broker, in turn; until the block ends."""

    def __init__(self, camera: MjpegServer, broker: Mosquitto) -> None:
        self._turns: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
            ("camera drops", camera.drop, lambda: None),
            ("broker restarts", broker.stop, broker.start),
            ("camera drops in mid picture", lambda: camera.drop(in_mid_picture=True), lambda: None),
            ("camera stalls", camera.stall, camera.resume),
        ]
        self.counts = {name: 0 for name, *_ in self._turns}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        turn = 0
        while not self._over.wait(DISTURB_EVERY):
            name, begin, end = self._turns[turn % len(self._turns)]
            begin()
            self._over.wait(3.0)
            end()
            self.counts[name] += 1
            turn += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def surfaces() -> Callable[[int], np.ndarray]:
    """Small grey frames with noise, one in a hundred with a dark spot: cheap to make and to inspect."""
    rng = np.random.default_rng(0)
    good = [np.clip(rng.normal(GREY, 2, (64, 128, 3)), 0, 255).astype(np.uint8) for _ in range(199)]
    bad = good[0].copy()
    bad[20:40, 30:60] = 20

    def picture(number: int) -> np.ndarray:
        return bad if number % 100 < 2 else good[number % len(good)]

    return picture


def demo_line() -> Callable[[int], np.ndarray]:
    """The demo's line, over and over."""
    line = SampleLine(0, 300)
    frames = [line.frame(i) for i in range(300)]
    return lambda number: frames[number % len(frames)]


def soak(
    title: str,
    bundle: Path | None,
    threshold: float,
    picture: Callable[[int], np.ndarray],
    enough: Callable[[float, int], float],
) -> dict[str, Any]:
    """Run the station until ``enough`` (of seconds and frames: share of the work done) says 1; the result's figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if bundle is None:
            bundle = folder / "bundle"
            make_bundle(bundle)
        # A broker that keeps what a subscriber who is away must have: else we would blame the station for it.
        broker = Mosquitto(folder, ["max_queued_messages 0", "persistence true", f"persistence_location {folder}/"])
        with (
            MjpegServer(fps=MAX_FPS, picture=picture) as camera,
            broker,
            Subscriber(broker.port) as subscriber,
            Ledger(broker.port, "station/v1/+/+/+/alert") as ledger,
        ):
            config = folder / "station.toml"
            text = SETTINGS.format(
                bundle=json.dumps(str(bundle.resolve())),
                url=camera.url,
                threshold=threshold,
                host=HOST,
                port=broker.port,
            )
            config.write_text(text)
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[n]:,} frames"),
            )
            with StationProcess(config, folder / "log") as process, bar:
                task = bar.add_task(title, total=1.0, n=0)
                watcher = Watcher(process, subscriber, folder / "state")
                began = time.monotonic()
                with Disturbance(camera, broker) as disturbance:
                    share = 0.0
                    while share < 1:
                        time.sleep(1)
                        frames = watcher.look()
                        share = enough(time.monotonic() - began, frames)
                        bar.update(task, completed=share, n=frames)
                        forget_scores(subscriber)
                process.process.terminate()
                if code := process.wait(30):
                    raise RuntimeError(f"the station ended with exit code {code}: {process.log[-2000:]}")
                subscriber.wait_for(
                    lambda heard: heard[-1].topic.endswith("/status") and b'"stopped"' in heard[-1].payload
                )
                ledger.wait_for(lambda heard: heard and b'"close"' in heard[-1].payload)
                alerts = [json.loads(heard.payload) for heard in ledger.heard]
    return {"title": title, **summarize(watcher.samples), "disturbances": disturbance.counts, **tally(alerts)}


def forget_scores(subscriber: Subscriber) -> None:
    """The subscriber remembers everything; a week of scores would be what grows."""
    subscriber.heard[:] = [m for m in subscriber.heard if m.topic.endswith(("/status", "/health"))][-1000:]


def tally(alerts: list[dict[str, Any]]) -> dict[str, int]:
    """Alerts heard, how many messages again (with the same key), and what was never closed or opened."""
    keys = [alert["dedupe_key"] for alert in alerts]
    opened = {alert["id"] for alert in alerts if alert["event"] == "open"}
    closed = {alert["id"] for alert in alerts if alert["event"] == "close"}
    return {
        "alerts": len(opened),
        "delivered_again": len(keys) - len(set(keys)),
        "not_closed": len(opened - closed),
        "closed_unopened": len(closed - opened),
    }


def summarize(samples: list[Sample]) -> dict[str, Any]:
    """Slopes and bounds after the warm-up."""
    late = samples[int(WARM_UP * len(samples)) :]
    frames = np.array([sample.frames for sample in late], np.float64)
    slope = np.polyfit(frames / 1e6, [sample.resident_mib for sample in late], 1)[0] if np.ptp(frames) else float("nan")
    return {
        "seconds": samples[-1].seconds,
        "frames": samples[-1].frames,
        "frames_per_second": round(samples[-1].frames / samples[-1].seconds, 1),
        "resident_mib": [round(late[0].resident_mib, 1), round(late[-1].resident_mib, 1)],
        "resident_mib_per_million_frames": round(float(slope), 2),
        "descriptors": [min(s.descriptors for s in late), max(s.descriptors for s in late)],
        "threads": [min(s.threads for s in late), max(s.threads for s in late)],
        "outbox_mib_max": max(s.outbox_mib for s in samples),
        "queued_max": {key: max(s.queued.get(key, 0) for s in samples) for key in samples[-1].queued},
        "samples": [asdict(s) for s in samples[:: max(1, len(samples) // 120)]],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=10, help="of the bundled engine at full speed; 0 leaves it out"
    )
    parser.add_argument("--frames", type=int, default=WEEK, help="of the tiny model; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    results = []
    if options.minutes:
        seconds = 60 * options.minutes
        results.append(soak("full speed, bundled engine", BUNDLE, 1200, demo_line(), lambda now, _: now / seconds))
    if options.frames:
        results.append(
            soak("a week of frames, tiny model", None, 40, surfaces(), lambda _, frames: frames / options.frames)
        )
    table = Table("", *(result["title"] for result in results))
    for key in results[0] if results else ():
        if key not in {"title", "samples"}:
            table.add_row(key, *(str(result[key]) for result in results))
    Console().print(table)
    if options.json:
        machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
        options.json.write_text(json.dumps({**machine, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
