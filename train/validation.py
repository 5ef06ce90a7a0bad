"""How well a scorer tells held-out good frames from frames with planted defects: a choice that looks at no test image.

Some defects are those of the training's recipe (``train.planting``), at full and at half contrast. The others are the
five kinds of ``engines.planted``, which training never sees, so that a model is not measured by its own recipe alone
(docs/decisions/0064).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from engines.defects import KINDS, Kind
from engines.engine import Float32Array, UInt8Array
from engines.planted import TRIES, PlantedFrame, blended, plant_defect
from train.metrics import PixelCurve, image_metrics
from train.planting import plant

RECIPES = {"recipe": 1.0, "faint recipe": 0.5}
"""Kinds drawn by the training's recipe: the share of its change that is blended in."""

PATCH = 64  # side of the window that a recipe's defect is drawn in
_WINDOWS = 8  # of the same frame at once: the recipe fills defects with material from elsewhere, too


@dataclass(frozen=True)
class KindResult:
    """How one kind of defect was found: auROC against all good frames, and share above the highest of them."""

    n: int
    image_auroc: float
    caught: float


@dataclass(frozen=True)
class Validation:
    """How well a scorer tells good frames from planted ones.

    Attributes:
        image_auroc: of the frames' scores.
        pixel_auroc: of the maps.
        caught: share of planted frames that score above the highest good frame.
        n_good: good frames.
        n_planted: frames with planted defects.
        kinds: the same for each kind of defect.
    """

    image_auroc: float
    pixel_auroc: float
    caught: float
    n_good: int
    n_planted: int
    kinds: dict[str, KindResult]


def plant_frames(
    images: Sequence[UInt8Array], seed: int, per_image: int = 1, *, patch: int = PATCH
) -> Iterator[PlantedFrame]:
    """Each image with a defect in it, ``per_image`` times over; all kinds come equally often.

    An image in which nothing can be planted, as nothing is darker than black, is passed over.

    Args:
        images: good frames, uint8 (H, W, 3), BGR or RGB, at the scale that the model sees.
        seed: decides everything.
        per_image: how many frames are made of each image, each with a defect of its own.
        patch: side of the model's patches, pixels; a defect of the recipe lies within one.
    """
    rng = np.random.default_rng(seed)
    kinds: list[str] = []
    for image in images:
        for _ in range(per_image):
            if not kinds:
                kinds = [str(kind) for kind in rng.permutation([*RECIPES, *KINDS])]
            planted = _plant(image, kinds.pop(), patch, rng)
            if planted is not None:
                yield planted


def validate(
    score: Callable[[UInt8Array], tuple[float, Float32Array]],
    good: Sequence[UInt8Array],
    bases: Sequence[UInt8Array],
    seed: int = 0,
    per_image: int = 2,
    *,
    patch: int = PATCH,
) -> Validation:
    """Measure a scorer on good frames and on planted ones.

    Args:
        score: what it makes of a frame: its score, and where, float32 (H, W), the higher the less normal.
        good: frames that were not trained on, uint8 (H, W, 3).
        bases: frames to plant defects into, likewise; may be the same. A scorer that was fitted to some held-out frames
            is measured on others.
        seed: decides the defects.
        per_image: planted frames made of each of ``bases``.
        patch: side of the model's patches, pixels.

    Raises:
        ValueError: no good frame, none that defects could be planted into, or a score that is not finite.
    """
    curve = PixelCurve()
    normal: list[float] = []
    for image in good:
        value, heat = score(image)
        normal.append(value)
        curve.add(heat, np.zeros(heat.shape, np.bool_))
    found: defaultdict[str, list[float]] = defaultdict(list)
    for planted in plant_frames(bases, seed, per_image, patch=patch):
        value, heat = score(planted.image)
        found[planted.kind].append(value)
        curve.add(heat, planted.mask)
    everything = [value for values in found.values() for value in values]
    auroc = image_metrics(normal, everything).auroc
    highest = max(normal)
    kinds = {
        kind: KindResult(len(found[kind]), image_metrics(normal, found[kind]).auroc, _above(highest, found[kind]))
        for kind in (*RECIPES, *KINDS)
        if kind in found
    }
    pixel_auroc = curve.auroc()
    assert pixel_auroc is not None  # noqa: S101 - both classes have pixels, since image_metrics took both
    return Validation(auroc, pixel_auroc, _above(highest, everything), len(normal), len(everything), kinds)


def _above(highest: float, values: Sequence[float]) -> float:
    return float(np.mean(np.asarray(values) > highest))


def _plant(image: UInt8Array, kind: str, patch: int, rng: np.random.Generator) -> PlantedFrame | None:
    """One defect of ``kind`` somewhere in ``image``; None if none of some tries changes it."""
    if kind not in RECIPES:
        return plant_defect(image, cast("Kind", kind), rng)
    for _ in range(TRIES):
        change, mask = _recipe_change(image, patch, rng)
        planted = blended(image, RECIPES[kind] * change, mask)
        if planted is not None:
            return PlantedFrame(planted, mask, kind, RECIPES[kind])
    return None


def _recipe_change(image: UInt8Array, patch: int, rng: np.random.Generator) -> tuple[Float32Array, NDArray[np.bool_]]:
    """What the training's recipe does to a window of the frame: its change (H, W, 3), grey levels, and its mask."""
    height, width = image.shape[:2]
    side = min(patch, height, width)
    corners = [(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))) for _ in range(_WINDOWS)]
    windows = np.stack([image[y : y + side, x : x + side] for y, x in corners])
    pixels = torch.from_numpy(windows).permute(0, 3, 1, 2).float() * (1 / 127.5) - 1
    planted = plant(pixels, torch.Generator().manual_seed(int(rng.integers(2**31))))
    change, mask = np.zeros(image.shape, np.float32), np.zeros((height, width), np.bool_)
    hit = int(planted.mask.flatten(1).sum(dim=1).argmax())  # some windows stay clean, some get but a dot
    y, x = corners[hit]
    area = np.s_[y : y + side, x : x + side]
    change[area] = ((planted.patches[hit] - pixels[hit]) * 127.5).permute(1, 2, 0).numpy()
    mask[area] = planted.mask[hit, 0].bool().numpy()
    return change, mask
