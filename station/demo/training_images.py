"""Pictures of the sample line as a data set in MVTec AD layout: what the bundled engine is trained and evaluated on."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from engines.defects import KINDS
from engines.engine import UInt8Array
from station.demo.sample_line import HEIGHT, PITCH, STEP, SampleLine
from station.demo.textures import DemoError
from station.files import write_file

N_TRAIN = 400  # with a step of 24 rows on the training belt, about every third row starts a frame
N_TEST_GOOD = 100
N_TEST_PER_KIND = 30
# Lines of their own: a demo run, whose seeds are small numbers, shows other light, noise and defects.
_TRAIN_SEED, _GOOD_SEED, _DEFECT_SEED, _CALIBRATION_SEED = range(1_000_001, 1_000_005)


def write_training_images(out: Path) -> None:
    """Write ``train`` from the training half of the photograph, ``test`` and ``ground_truth`` from the line's half.

    Args:
        out: folder to write to; made if it does not exist.

    Raises:
        DemoError: the folder holds files already, or the photograph is missing.
        OutputError: the folder cannot be written.
    """
    if out.is_dir() and any(out.iterdir()):
        raise DemoError(f"{out} is not empty; name a new folder for the training images")
    total = N_TRAIN + N_TEST_GOOD + 2 * N_TEST_PER_KIND * len(KINDS)
    for name, grey in track(_pictures(), total=total, description="training images"):
        write_file(out / name, cv2.imencode(".png", grey)[1].tobytes())


def good_frames(n: int) -> Iterator[UInt8Array]:
    """Good frames of the line to calibrate on, uint8 (256, 256), grey; none of them is trained on or in ``test``."""
    apart = HEIGHT // STEP + 1  # frames that share no row of the web, so that each tells something new
    line = SampleLine(_CALIBRATION_SEED, n * apart, defects=False)
    return (line.frame(i)[..., 0] for i in range(0, line.n_frames, apart))


def _pictures() -> Iterator[tuple[str, UInt8Array]]:
    """Path inside the data set and picture, uint8 (256, 256), grey."""
    training = SampleLine(_TRAIN_SEED, N_TRAIN, part="training", defects=False)
    for i in range(N_TRAIN):
        yield f"train/good/{i:03}.png", training.frame(i)[..., 0]
    good = SampleLine(_GOOD_SEED, N_TEST_GOOD, defects=False)
    for i in range(N_TEST_GOOD):
        yield f"test/good/{i:03}.png", good.frame(i)[..., 0]
    per_kind = dict.fromkeys(KINDS, 0)
    line = SampleLine(_DEFECT_SEED, (N_TEST_PER_KIND * len(KINDS) + 2) * PITCH // STEP)
    for planted in line.planted:
        n = per_kind[planted.kind]
        if n == N_TEST_PER_KIND:
            continue
        per_kind[planted.kind] += 1
        frames = planted.frames(line.n_frames)
        middle = frames[len(frames) // 2]  # wholly in the frame, and too far from the next for both to show
        yield f"test/{planted.kind}/{n:03}.png", line.frame(middle)[..., 0]
        mask = line.mask(middle).astype(np.uint8) * 255
        yield f"ground_truth/{planted.kind}/{n:03}_mask.png", mask
