"""How often the camera rules fire on good frames and on defects, and how surely on each fault. docs/camera-faults.md.

``python -m benchmarks.camera_health --data grid=DIR --data tiles=DIR [--out benchmarks/results/camera_health.json]``

Each DIR holds ``train/good``, ``test/good`` and ``test/<defect>``. One half of the good images calibrates, the other
half is checked, then the other way round. The demo's sample line, between rails that stand still, is measured too.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engines.engine import UInt8Array
from engines.images import find_images, read_image
from station.camera.truncation import TruncationCheck
from station.demo.sample_line import SampleLine
from station.frames import Frame
from station.health.camera import CameraProfile, CameraWatch, ProfileMaker
from station.health.reading import measure
from station.settings import HealthSettings
from tests.support import camera_faults as faults

Images = Sequence[UInt8Array]
Spoil = Callable[[UInt8Array, int], UInt8Array]

SPOILT = 60  # frames at most that each fault is laid on
SEQUENCE = 60  # frames of a fault that only a sequence shows
FPS = 25

PER_FRAME: dict[str, tuple[str, Spoil]] = {
    "light x 0.02": ("camera-black camera-dark", lambda image, _: faults.dimmed(image, 0.02)),
    "light x 0.3": ("camera-black camera-dark", lambda image, _: faults.dimmed(image, 0.3)),
    "light x 0.6": ("camera-black camera-dark", lambda image, _: faults.dimmed(image, 0.6)),
    "light x 1.5": ("camera-bright camera-saturated", lambda image, _: faults.overexposed(image, 1.5)),
    "light x 2.5": ("camera-bright camera-saturated", lambda image, _: faults.overexposed(image, 2.5)),
    "light x 10": ("camera-bright camera-saturated", lambda image, _: faults.overexposed(image, 10)),
    "blur of 1 pixel": ("camera-blurred", lambda image, _: faults.defocused(image, 1, 1)),
    "blur of 2 pixels": ("camera-blurred", lambda image, _: faults.defocused(image, 2, 1)),
    "blur of 4 pixels": ("camera-blurred", lambda image, _: faults.defocused(image, 4, 1)),
    "moved by 1 %": ("camera-moved", lambda image, _: _moved(image, 0.01)),
    "moved by 3 %": ("camera-moved", lambda image, _: _moved(image, 0.03)),
    "moved by 8 %": ("camera-moved", lambda image, _: _moved(image, 0.08)),
    "red and blue exchanged": ("camera-colours", lambda image, _: faults.recoloured(image)),
}
IN_SEQUENCE: dict[str, tuple[str, Spoil]] = {
    "flicker of 3 %": ("camera-flicker", lambda image, i: faults.flickering(image, 0.03, i)),
    "flicker of 10 %": ("camera-flicker", lambda image, i: faults.flickering(image, 0.1, i)),
    "flicker of 30 %": ("camera-flicker", lambda image, i: faults.flickering(image, 0.3, i)),
}


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/camera_health.json"))
    arguments = parser.parse_args()
    materials = {name: _load(Path(folder)) for name, _, folder in (text.partition("=") for text in arguments.data)}
    materials |= {"sample line": _sample_line(lambda image: image)}
    materials |= {
        "sample line, rails, tinted": _sample_line(lambda image: faults.railed(faults.tinted(image, 0.8, 1.2)))
    }
    results = {name: _measure(name, *images) for name, images in materials.items()}
    results["measure_ms_1920x1080"] = _cost()
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    _show(results)


def _load(folder: Path) -> tuple[Images, Images]:
    good = [read_image(path) for part in ("train/good", "test/good") for path in find_images(folder / part)]
    defects = [read_image(path) for path in find_images(folder / "test") if path.parent.name != "good"]
    return good, defects


def _sample_line(view: Callable[[UInt8Array], UInt8Array]) -> tuple[Images, Images]:
    good, planted = SampleLine(1, 600, defects=False), SampleLine(2, 600)
    return (
        [view(good.frame(i)) for i in range(600)],
        [view(planted.frame(i)) for i in range(600) if planted.mask(i).any()],
    )


def _moved(image: UInt8Array, share: float) -> UInt8Array:
    step = round(share * max(image.shape[:2]))
    return faults.shifted(image, step, -step)


def _measure(name: str, good: Images, defects: Images) -> dict[str, object]:
    order = np.random.default_rng(0).permutation(len(good)) if "line" not in name else np.arange(len(good))
    halves = [sorted(order[0::2]), sorted(order[1::2])] if "line" not in name else np.array_split(order, 2)
    fired: dict[str, Counter[str]] = {"good": Counter(), "defective": Counter()}
    frames = Counter[str]()
    detected: dict[str, list[float]] = defaultdict(list)
    blind: dict[str, str] = {}
    for calibrating, checking in (halves, halves[::-1]):
        profile = _profile(good[i] for i in calibrating)
        others = [good[i] for i in checking]
        blind |= profile.blind
        for kind, images in (("good", others), ("defective", defects)):
            frames[kind] += len(images)
            fired[kind].update(_fired(profile, images))
        for fault, (codes, spoil) in track(PER_FRAME.items(), f"{name}: frames"):
            chosen = others[:: -(-len(others) // SPOILT)]
            detected[fault].append(np.mean([_found(profile, [spoil(image, 0)]) in codes.split() for image in chosen]))
        for fault, (codes, spoil) in track(IN_SEQUENCE.items(), f"{name}: sequences"):
            runs = [others[i : i + SEQUENCE] for i in range(0, len(others) - SEQUENCE + 1, SEQUENCE)]
            detected[fault].append(
                np.mean(
                    [_found(profile, [spoil(image, i) for i, image in enumerate(run)]) in codes.split() for run in runs]
                )
            )
    for share in (0.5, 0.1, 0.01) if len({image.shape for image in good}) == 1 else ():
        detected[f"the last {share:.0%} of a JPEG missing"].append(_truncated(good, share))
    detected["frozen for 6 s"].append(_frozen(profile, good[:20]))
    return {
        "good": {"frames": frames["good"], "fired": dict(fired["good"])},
        "defective": {"frames": frames["defective"], "fired": dict(fired["defective"])},
        "blind": blind,
        "detected": {fault: round(float(np.mean(rates)), 4) for fault, rates in detected.items()},
    }


def _profile(images: Iterable[UInt8Array]) -> CameraProfile:
    maker = ProfileMaker()
    for image in images:
        maker.add(image)
    return maker.make()


def _frame(image: UInt8Array, number: int) -> Frame:
    return Frame(number, image, datetime.now(timezone.utc), number / FPS)


def _fired(profile: CameraProfile, images: Images) -> list[str]:
    watch = CameraWatch(profile, HealthSettings())
    found = [watch.check(_frame(image, i)) for i, image in enumerate(images)]
    return [fault.code for fault in found if fault]


def _found(profile: CameraProfile, images: Images) -> str | None:
    """What the last frame of a sequence is found to be."""
    watch = CameraWatch(profile, HealthSettings())
    fault = None
    for i, image in enumerate(images):
        fault = watch.check(_frame(image, i))
    return fault.code if fault else None


def _truncated(images: Images, share: float) -> float:
    """Of every tenth picture cut short, as the capture thread sees it; minus the whole ones reported."""
    check, found, false, tried = TruncationCheck(), 0, 0, 0
    before: UInt8Array | None = None
    for i, image in enumerate(images):
        cut = i % 10 == 9 and before is not None and before.shape == image.shape
        shown = faults.stale_from(image, before, share) if cut else image
        said = check.check(shown) is not None
        tried, found, false = tried + cut, found + (said and cut), false + (said and not cut)
        before = shown
    return (found - false) / tried if tried else float("nan")


def _frozen(profile: CameraProfile, images: Images) -> float:
    return float(np.mean([_found(profile, [image] * (6 * FPS)) == "camera-frozen" for image in images]))


def _cost() -> float:
    image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    times = []
    for _ in range(200):
        began = perf_counter()
        measure(image)
        times.append(1e3 * (perf_counter() - began))
    return round(float(np.median(times)), 3)


def _show(results: dict[str, object]) -> None:
    console = Console()
    for name, result in results.items():
        if not isinstance(result, dict):
            console.print(f"{name}: {result}")
            continue
        table = Table(title=name)
        table.add_column("fault")
        table.add_column("recognised", justify="right")
        for fault, rate in result["detected"].items():
            table.add_row(fault, f"{rate:.1%}")
        console.print(table)
        for kind in ("good", "defective"):
            console.print(f"{kind}: {result[kind]}")
        console.print(f"not watched for: {result['blind']}")


if __name__ == "__main__":
    main()
