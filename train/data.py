"""Defect-free training images: found, checked, decoded and prepared once, held in memory."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from engines.engine import UInt8Array
from engines.errors import ImageError
from engines.images import find_images, read_image
from engines.tiling import Tiler
from train.config import FitConfig
from train.errors import DataError

FEWEST_HELD_OUT = 6  # fewer say less of what good material scores than training on them brings


@dataclass(frozen=True)
class TrainingImages:
    """Prepared images, ready to be sampled.

    Attributes:
        images: uint8 (H, W, 1) when all are grey, else (H, W, 3) RGB; resized as the configuration says.
        paths: where each came from.
        held_out: images that are not trained on.
        colour: what the images turned out to be, or were told to be.
        fingerprint: sha256 over the sorted (name, size, content hash) of all files.
        skipped: unreadable files that were left out.
    """

    images: list[UInt8Array]
    paths: list[Path]
    colour: Literal["rgb", "gray"]
    fingerprint: str
    skipped: list[str]
    held_out: list[Path] = field(default_factory=list)


def find_training_images(data: Path) -> list[Path]:
    """Images below ``data/train/good`` (MVTec AD layout) or, where that is missing, below ``data``.

    Raises:
        DataError: no such folder, or no image in it.
    """
    folder = data / "train" / "good"
    if not folder.is_dir():
        folder = data
        if (data / "test").is_dir() or (data / "ground_truth").is_dir():
            raise DataError(f"{data}: has test/ or ground_truth/ but no train/good/ with defect-free images")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = find_images(folder)
    if not paths:
        raise DataError(f"{folder}: holds no image; PNG, JPEG, BMP and TIFF are read")
    return paths


def load_training_images(
    paths: list[Path], config: FitConfig, *, skip_bad: bool = False
) -> Iterator[int | TrainingImages]:
    """Decode and prepare ``paths``; yields a count after each file, then the images.

    Raises:
        DataError: a file cannot be read or is too small (all such files are named), or memory would not suffice.
    """
    tiler = Tiler(config.preprocessing("gray" if config.colour == "gray" else "rgb"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def load(path: Path) -> tuple[UInt8Array, str] | str:
        try:
            image = read_image(path)
            prepared = tiler.prepare(image)
            tiler.grid((image.shape[0], image.shape[1]))  # refuses what is smaller than a patch
        except (ImageError, ValueError) as error:
            return f"{path}: {error}" if str(path) not in str(error) else str(error)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return (
            prepared[:, :, :1].copy() if is_grey(prepared) else prepared
        ), f"{path.name} {path.stat().st_size} {digest}"

    images: list[UInt8Array] = []
    good: list[Path] = []
    entries: list[str] = []
    bad: list[str] = []
    used = 0
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for i, (path, result) in enumerate(zip(paths, pool.map(load, paths), strict=True)):
            if isinstance(result, str):
                bad.append(result)
            else:
                images.append(result[0])
                entries.append(result[1])
                good.append(path)
                used += result[0].nbytes
                if used > memory // 2:
                    pool.shutdown(cancel_futures=True)
                    raise DataError(
                        f"the images do not fit into memory ({i + 1} of {len(paths)} take {used / 2**30:.1f} GiB of "
                        f"{memory / 2**30:.1f}); shrink them with --frame-size or --scale, or take fewer"
                    )
            yield i + 1
    if bad and not skip_bad:
        shown = "\n  ".join(bad[:20]) + (f"\n  … and {len(bad) - 20} more" if len(bad) > 20 else "")
        raise DataError(f"{len(bad)} of {len(paths)} images cannot be used:\n  {shown}\nMend them, or pass --skip-bad.")
    if not images:
        raise DataError("none of the images can be used:\n  " + "\n  ".join(bad[:20]))
    grey = config.colour != "rgb" and all(i.shape[2] == 1 for i in images)
    if not grey:
        images = [np.repeat(i, 3, axis=2) if i.shape[2] == 1 else i for i in images]
    fingerprint = hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()
    colour: Literal["rgb", "gray"] = "gray" if grey else "rgb"
    kept = held_out(len(images), config)
    yield TrainingImages(
        [image for i, image in enumerate(images) if i not in kept],
        [path for i, path in enumerate(good) if i not in kept],
        colour,
        fingerprint,
        bad,
        [path for i, path in enumerate(good) if i in kept],
    )


def held_out(n: int, config: FitConfig) -> frozenset[int]:
    """Which of ``n`` images are not trained on: a share of them drawn by the seed; none of a handful."""
    count = round(config.holdout * n)
    if count < FEWEST_HELD_OUT:
        return frozenset()
    return frozenset(np.random.default_rng(config.seed).permutation(n)[:count].tolist())


def is_grey(image: UInt8Array) -> bool:
    """Whether all three channels of (H, W, 3) are equal."""
    return bool(np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2]))


def spread(paths: Sequence[Path], n: int) -> list[Path]:
    """At most ``n`` of ``paths``, evenly spread."""
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, n).astype(int))] if paths else []
