"""How well a bundle finds what is planted on the demo's sample line, over many seeds.

The same parts as ``station demo`` (calibration, inspector, alerts, tally), in one process and without a broker, so that
ten runs take seconds. For every kind: how many of the planted defects were found, and the margin: the highest score
while the defect was in sight, divided by the threshold.

    python benchmarks/demo_line.py --bundle engines/bundled/brick --seeds 10 --json benchmarks/results/demo_line.json
"""

import argparse
import json
import logging
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engines.bundle import read_bundle
from engines.engine import EngineSettings
from engines.judging import Judging
from engines.opening import open_engine
from engines.tiling import Tiler
from station.calibration import calibrate_good
from station.commands.demo import BUNDLE, FALSE_ALARM_RATE, N_CALIBRATION
from station.demo.sample_line import DEFAULT_FRAMES, SampleLine
from station.demo.tally import Tally
from station.demo.training_images import good_frames
from station.frames import Frame
from station.inspection import Inspector
from station.judge import AlertEvent, AlertTracker
from station.settings import AlertSettings, JudgeSettings


def run(inspector: Inspector, line: SampleLine, threshold: float, median_good: float) -> tuple[Tally, list[float]]:
    """Inspect one line; the tally, and for every planted defect the highest frame score while it was in sight."""
    tally, peaks = Tally(line), [0.0] * len(line.planted)
    tracker = AlertTracker(AlertSettings(), threshold, median_good)
    for i in range(line.n_frames):
        frame = Frame(seq=i + 1, image=line.frame(i), captured_at=datetime.now(timezone.utc), monotonic=0.0)
        inspection = inspector.inspect(frame.image)
        for k, planted in enumerate(line.planted):
            if planted.box(i) is not None:
                peaks[k] = max(peaks[k], inspection.score)
        _take(tally, tracker.update(frame, inspection))
    _take(tally, tracker.flush())
    return tally, peaks


def _take(tally: Tally, events: list[AlertEvent]) -> None:
    for event in events:
        tally.take(event.id, event.last_frame, event.boxes)


def measure(bundle: Path, seeds: int, n_frames: int) -> dict[str, Any]:
    """Calibrate as the demo does, then run ``seeds`` lines."""
    read = read_bundle(bundle)
    engine = open_engine(read, EngineSettings())
    inspector = Inspector(engine, Tiler(read.manifest.preprocessing), Judging.of(read.manifest), JudgeSettings())
    good = np.array(
        [
            inspector.inspect(np.repeat(grey[..., None], 3, axis=2)).score
            for grey in track(good_frames(N_CALIBRATION), total=N_CALIBRATION, description="calibration")
        ]
    )
    threshold = calibrate_good(good, FALSE_ALARM_RATE)[1].threshold
    margins: dict[str, list[float]] = defaultdict(list)
    planted: dict[str, int] = defaultdict(int)
    found: dict[str, int] = defaultdict(int)
    false_alarms = []
    for seed in track(range(seeds), description="lines"):
        tally, peaks = run(inspector, SampleLine(seed, n_frames), threshold, float(np.median(good)))
        for defect, peak in zip(tally.line.planted, peaks, strict=True):
            margins[defect.kind].append(peak / threshold)
        for kind, (n, n_found) in tally.by_kind().items():
            planted[kind] += n
            found[kind] += n_found
        false_alarms.append(len(tally.false_alarms))
    engine.close()
    return {
        "bundle": read.manifest.name,
        "bundle_sha256": read.digest,
        "seeds": seeds,
        "frames": seeds * n_frames,
        "threshold": threshold,
        "median_good": float(np.median(good)),
        "found": sum(found.values()) / sum(planted.values()),
        "false_alarms": false_alarms,
        "kinds": {
            kind: {
                "planted": planted[kind],
                "found": found[kind],
                "lowest_margin": round(min(margins[kind]), 3),
                "median_margin": round(float(np.median(margins[kind])), 3),
            }
            for kind in sorted(planted)
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundle; default: the one of the demo")
    parser.add_argument("--seeds", type=int, default=10, help="lines to run, of seeds 0, 1, ... (default 10)")
    parser.add_argument("--frames", type=int, default=DEFAULT_FRAMES, help="frames of a line (default 300)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    result = measure(options.bundle, options.seeds, options.frames)
    table = Table()
    for heading in ("kind", "planted", "found", "lowest margin", "median margin"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, row in result["kinds"].items():
        table.add_row(kind, *map(str, row.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"found {result['found']:.1%}; false alarms by line: {result['false_alarms']}")
    console.print(f"threshold {result['threshold']:.1f}, median of good frames {result['median_good']:.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
