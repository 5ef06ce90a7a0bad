"""How often the drift watch errs, and how long it takes. Figures of docs/decisions/0042.

``python -m benchmarks.drift [--stations 20] [--out benchmarks/results/drift.json]``

Scores are simulated, one per frame of the window, which by default are five seconds apart; and taken from the bundled
engine on the demo's line, as it is and with what a lamp, a lens or a sensor may do to it.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from engines.bundle import read_bundle
from engines.engine import EngineSettings, UInt8Array
from engines.judging import Judging
from engines.opening import open_engine
from engines.tiling import Tiler
from station.calibration import thinned
from station.commands.demo import BUNDLE
from station.demo.sample_line import SampleLine
from station.health.drift import DriftWatch
from station.inspection import Inspector
from station.settings import HealthSettings, JudgeSettings

Values = NDArray[np.float64]
Rng = np.random.Generator

SETTINGS = HealthSettings(drift_every=0)  # every simulated score is one of the window
SECONDS = HealthSettings().drift_every
WINDOW = SETTINGS.drift_window


def gumbel(normal: Values) -> Values:
    """Scores of Gumbel distribution from standard normal ones: maxima over patches look like that."""
    return np.asarray(stats.gumbel_r(100, 10).ppf(stats.norm.cdf(normal)).clip(50, 500), np.float64)


def wander(n: int, time_constant: float, rng: Rng) -> Values:
    """(n,), a first-order process of variance 1."""
    phi = np.exp(-1 / time_constant)
    start = rng.normal()
    steps = rng.normal(0, np.sqrt(1 - phi**2), n)
    return np.asarray(signal.lfilter([1], [1, -phi], steps, zi=[phi * start])[0], np.float64)


def process(n: int, share: float, time_constant: float, rng: Rng) -> Values:
    """(n,), variance 1: ``share`` of it wanders slowly, the rest is new with every frame."""
    return np.sqrt(1 - share) * rng.normal(size=n) + np.sqrt(share) * wander(n, time_constant, rng)


PROCESSES: dict[str, tuple[float, float]] = {
    "independent frames": (0.0, 1.0),
    "20 % of the variance wanders, 20 frames": (0.2, 20.0),
    "20 % wanders, 500 frames": (0.2, 500.0),
    "50 % wanders, 20 frames": (0.5, 20.0),
    "50 % wanders, 500 frames": (0.5, 500.0),
    "all wanders, 20 frames": (1.0, 20.0),
}


def told(watch: DriftWatch, scores: Values) -> list[str | None]:
    """Direction after each score."""
    found = []
    for score in scores:
        watch.add(float(score))
        found.append(watch.health().direction)
    return found


def false_rate(share: float, time_constant: float, n_reference: int, stations: int, rng: Rng) -> dict[str, float]:
    """No drift at all: how often it is called one, over 20 windows a station."""
    n, starts, frames_in = 20 * WINDOW, 0, 0
    for _ in range(stations):
        # The calibration's frames are from the same line, far enough in the past.
        watch = DriftWatch(list(gumbel(process(n_reference, share, time_constant, rng))), SETTINGS)
        states = np.array([state is not None for state in told(watch, gumbel(process(n, share, time_constant, rng)))])
        starts += int(np.count_nonzero(np.diff(states.astype(int)) == 1))
        frames_in += int(states.sum())
    total = stations * n
    return {
        "false starts per 30 days": round(starts / total * 30 * 86400 / SECONDS, 2),
        "share of time": round(frames_in / total, 5),
    }


CHANGES: dict[str, Callable[[Values], Values]] = {
    "higher by 0.5 σ": lambda x: x + 0.5,
    "higher by 1 σ": lambda x: x + 1,
    "higher by 2 σ": lambda x: x + 2,
    "lower by 1 σ": lambda x: x - 1,
    "lower by 2 σ": lambda x: x - 2,
    "σ doubled": lambda x: 2 * x,
    "σ tripled": lambda x: 3 * x,
    "rising by 1 σ an hour": lambda x: x + np.arange(x.size) * SECONDS / 3600,
}


def delay(change: Callable[[Values], Values], share: float, time_constant: float, stations: int, rng: Rng) -> dict:
    """A change after one full window: how many frames until it is told, and what is told."""
    n, delays, directions = 12 * WINDOW, [], set()
    for _ in range(stations):
        watch = DriftWatch(list(gumbel(process(1000, share, time_constant, rng))), SETTINGS)
        told(watch, gumbel(process(WINDOW, share, time_constant, rng)))
        states = told(watch, gumbel(change(process(n, share, time_constant, rng))))
        first = next((i for i, state in enumerate(states) if state is not None), None)
        if first is not None:
            delays.append(first + 1)
            directions.add(states[first])
    return {
        "told": round(len(delays) / stations, 3),
        "median delay, frames": float(np.median(delays)) if delays else None,
        "90 % within, frames": round(float(np.quantile(delays, 0.9))) if delays else None,
        "median delay, minutes": round(float(np.median(delays)) * SECONDS / 60, 1) if delays else None,
        "as": sorted(directions),
    }


def burst(length: int, stations: int, rng: Rng) -> dict[str, float]:
    """Nothing but defects for ``length`` frames, then good ones again."""
    found = 0
    for _ in range(stations):
        watch = DriftWatch(list(gumbel(rng.normal(size=1000))), SETTINGS)
        scores = gumbel(rng.normal(size=3 * WINDOW))
        scores[WINDOW : WINDOW + length] = 10 * scores.max()
        found += any(told(watch, scores))
    return {"minutes": round(length * SECONDS / 60, 1), "called drift": round(found / stations, 3)}


def sprinkled(rate: float, stations: int, rng: Rng) -> dict[str, float]:
    """A share of all frames is defective for good."""
    found = 0
    for _ in range(stations):
        watch = DriftWatch(list(gumbel(rng.normal(size=1000))), SETTINGS)
        scores = gumbel(rng.normal(size=4 * WINDOW))
        scores[rng.random(scores.size) < rate] = 10 * scores.max()
        found += any(told(watch, scores))
    return {"called drift": round(found / stations, 3)}


LINE = {
    "as it is": lambda image, _: image,
    "5 % darker": lambda image, _: (0.95 * image).round().astype(np.uint8),
    "20 % darker": lambda image, _: (0.8 * image).round().astype(np.uint8),
    "defocus, σ 0.7 pixels": lambda image, _: cv2.GaussianBlur(image, (0, 0), 0.7),
    "defocus, σ 1.5 pixels": lambda image, _: cv2.GaussianBlur(image, (0, 0), 1.5),
    "noise of 5 grey levels": lambda image, rng: (image + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8),
}


def sample_line(bundle: Path, n: int, rng: Rng) -> Iterator[tuple[str, dict[str, object]]]:
    """The bundled engine's scores on the demo's line: calibrated on one run, watched on others of ``n`` frames."""
    read = read_bundle(bundle)
    engine = open_engine(read, EngineSettings())
    inspector = Inspector(engine, Tiler(read.manifest.preprocessing), Judging.of(read.manifest), JudgeSettings())

    def scores(seed: int, frames: int, change: Callable[..., UInt8Array], defects: bool) -> list[float]:
        line = SampleLine(seed, frames, defects=defects)
        return [inspector.inspect(change(line.frame(i), rng)).score for i in range(frames)]

    reference = thinned(np.array(scores(1, 300, LINE["as it is"], defects=False)))
    for seed, (name, change) in enumerate(LINE.items(), 2):
        for defects in (False, True) if name == "as it is" else (False,):
            watch = DriftWatch(reference, SETTINGS)
            directions = told(watch, np.array(scores(seed, n, change, defects)))
            first = next((i for i, direction in enumerate(directions) if direction is not None), None)
            health = watch.health()
            yield (
                f"demo's line {name}{', with its defects' if defects else ''}",
                {
                    "effect at the end": health.effect,
                    "share of time": round(sum(d is not None for d in directions) / n, 4),
                    "first told, frame": first,
                    "as": sorted({d for d in directions if d is not None}),
                },
            )
    engine.close()


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stations", type=int, default=20, help="simulated stations per figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--line-frames", type=int, default=600, help="frames of the demo's line per figure")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    n = arguments.stations
    kinds = [
        *(
            (f"no drift: {name}; {m} good scores", lambda a=a, m=m: false_rate(*a, m, n, rng))
            for name, a in PROCESSES.items()
            for m in (60, 264, 1000)
        ),
        *(
            (f"{name}; {p}", lambda c=c, p=p: delay(c, *PROCESSES[p], n, rng))
            for name, c in CHANGES.items()
            for p in ("independent frames", "50 % wanders, 20 frames")
        ),
        *((f"defects only, {k} frames", lambda k=k: burst(k, n, rng)) for k in (50, 100, 150, 200, 250, 300)),
        *((f"{r:.0%} of the frames defective", lambda r=r: sprinkled(r, n, rng)) for r in (0.05, 0.2, 0.3, 0.4)),
    ]
    results: dict[str, object] = {"window": WINDOW, "stations": n}
    lines = sample_line(arguments.bundle, arguments.line_frames, rng)
    for name, result in itertools.chain(((name, measure()) for name, measure in kinds), lines):
        print(f"{name:75} {result}", flush=True)
        results[name] = result
        if arguments.out:  # at once: all of it takes minutes
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
