"""What good frames show besides their scores: the patches that score highest, and where in the frame scores are high.

A defect among the good frames hides in a patch, and uneven light, a dirty lens or the product's edge in a place.
"""

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.engine import Float32Array, UInt8Array
from engines.geometry import Box
from engines.pictures import shrunk
from engines.tiling import PatchGrid, Size
from station.frames import Inspection

MAX_PATCHES = 24
PER_FRAME = 3
"""Patches that one frame may give to the montage: one odd frame must not fill it."""
MAX_SIZES = 4
AVERAGE_SIDE = 480
NOTABLE = 0.2
"""Difference worth telling, as a share of the way from an ordinary patch to the highest-scoring good frames."""
SPOT = 0.4
_SURE = 3.0  # standard errors

Where = Literal["left", "right", "top", "bottom", "edges", "middle", "columns", "rows", "spot"]
Map = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A patch worth a look, with half a patch of its surroundings.

    Attributes:
        name: of the frame.
        score: the patch's.
        box: where it lies, frame pixels.
        picture: uint8 (h, w, 3), BGR: patch and surroundings.
        heat: float32 (h, w): where these depart from good material.
        inside: where the patch lies in ``picture``.
    """

    name: str
    score: float
    box: Box
    picture: UInt8Array = field(repr=False)
    heat: Float32Array = field(repr=False)
    inside: Box


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Scores by place in the frame.

    Attributes:
        grid: of the frames.
        n: how many they are.
        mean: (R, C), mean score of the patch there.
        highest: (R, C), its highest score.
        first: (R, C), frames whose highest patch was there.
        average: uint8 (h, w, 3), BGR: the mean of the frames, no side longer than ``AVERAGE_SIDE``.
        contrasts: (n, 3), each frame's right less left, bottom less top, edges less middle; NaN where the grid is
            too small for it.
    """

    grid: PatchGrid
    n: int
    mean: Map
    highest: Map
    first: NDArray[np.int64]
    average: UInt8Array
    contrasts: Map

    @property
    def edges(self) -> tuple[list[float], list[float]]:
        """Where one place ends and the next begins, frame pixels: (R + 1 of them down, C + 1 across)."""
        roi, (height, width) = self.grid.roi, self.grid.prepared_size
        down = _borders(self.grid.rows, self.grid.patch, height)
        across = _borders(self.grid.columns, self.grid.patch, width)
        return [roi.y + v * roi.h / height for v in down], [roi.x + v * roi.w / width for v in across]


@dataclass(frozen=True, slots=True)
class Finding:
    """A part of the frame that scores higher than the rest.

    Attributes:
        where: which part.
        excess: by how much, as a share of the way from an ordinary patch to the highest-scoring good frames.
        at: for a spot, (x, y) of its middle in frame pixels.
    """

    where: Where
    excess: float
    at: tuple[int, int] | None = None

    @property
    def mends(self) -> bool:
        """Whether there is something to mend; a pattern of the product itself is none."""
        return self.where not in ("columns", "rows")

    def words(self) -> str:
        """What it is and what helps, in plain words."""
        much = f"by {100 * self.excess:.0f} % of the way from an ordinary patch to the highest-scoring good frames"
        if self.at is not None:
            return (
                f"One place stands out, around x {self.at[0]}, y {self.at[1]}: {much}. Something that stays there: "
                "dirt on lens or glass, a reflection, a mark of the machine. Clean it, shade it, or leave it out with "
                "camera.roi."
            )
        if self.where == "edges":
            return (
                f"The edges of the frame score higher than its middle, {much}. Usually the product's edge or the "
                "background is in view, or the lens is darker or less sharp there: leave the border out with "
                "camera.roi, or light and focus it like the rest."
            )
        if self.where == "middle":
            return (
                f"The middle of the frame scores higher than its edges, {much}. A lamp's reflection or hot spot is the "
                "usual reason: a larger, more diffuse lamp, or one further from the lens, spreads it."
            )
        if self.where in ("columns", "rows"):
            return (
                f"Scores change from {'column to column' if self.where == 'columns' else 'row to row'} of the frame, "
                f"{much} between the highest and the lowest. That is harmless where it is the product's own pattern, "
                "always at the same place. Stripes of light or a dirty line of the sensor look the same: compare the "
                "mean of the frames."
            )
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[self.where]
        side = {"left": "left", "right": "right", "top": "upper", "bottom": "lower"}
        return (
            f"The {side[self.where]} side of the frame scores higher than the {side[opposite]} one, {much}. Uneven "
            "light is the usual reason, a tilted camera the next: even it out, or leave that side out with camera.roi."
        )


class Survey:
    """Looks at good frames one by one and keeps little of each."""

    def __init__(self) -> None:
        self.patches: list[Patch] = []
        self._sizes: Counter[Size] = Counter()
        self._sums: dict[Size, _Sums] = {}
        self._seen = 0

    def add(self, name: str, image: UInt8Array, inspection: Inspection) -> None:
        """Take the next frame.

        Args:
            name: of its file; "" for a camera's.
            image: uint8 (H, W, 3), BGR.
            inspection: of it.
        """
        self._seen += 1
        self._keep_patches(name or f"frame {self._seen}", image, inspection)
        size = inspection.grid.frame_size
        self._sizes[size] += 1
        if size not in self._sums and len(self._sums) < MAX_SIZES:
            self._sums[size] = _Sums(inspection.grid)
        if size in self._sums:
            self._sums[size].add(image, inspection)

    def places(self) -> Places | None:
        """Scores by place, over the frames of the most frequent size; None for a single place or no frame."""
        best = max(self._sums, key=self._sizes.__getitem__, default=None)
        if best is None or self._sums[best].grid.n < 2:
            return None
        return self._sums[best].places()

    def _keep_patches(self, name: str, image: UInt8Array, inspection: Inspection) -> None:
        scores, grid = inspection.patch_scores, inspection.grid
        taken: list[NDArray[np.int32]] = []
        origins = grid.origins
        for index in np.argsort(-scores, kind="stable"):
            full = len(self.patches) == MAX_PATCHES
            if len(taken) == PER_FRAME or (full and scores[index] <= self.patches[-1].score):
                return
            # Neighbours share what they show, through overlap or the smoothing of the map.
            if any(np.abs(origins[index] - other).max() < 1.5 * grid.patch for other in taken):
                continue
            taken.append(origins[index])
            insort(self.patches, _cut(name, image, inspection, int(index)), key=lambda patch: -patch.score)
            del self.patches[MAX_PATCHES:]


def findings(places: Places, reach: float) -> list[Finding]:
    """Which parts of the frame score clearly higher than others; the largest difference first.

    Told is what is large (``NOTABLE``) and no accident of these frames (three standard errors). The threshold is no
    measure for that: a bold budget may put it anywhere.

    Args:
        places: scores by place.
        reach: what the highest-scoring good frames score.
    """
    way = reach - float(np.median(places.mean))
    if way <= 0:
        return []
    found = []
    pairs: tuple[tuple[Where, Where], ...] = (("right", "left"), ("bottom", "top"), ("edges", "middle"))
    for (more, less), differences in zip(pairs, places.contrasts.T, strict=True):
        excess = float(differences.mean()) / way
        error = float(differences.std()) / way / np.sqrt(len(differences))
        if abs(excess) >= NOTABLE and abs(excess) > _SURE * error:  # never, where it is NaN
            found.append(Finding(more if excess > 0 else less, abs(excess)))
    sides = {finding.where for finding in found}
    bands: tuple[tuple[Where, int, set[Where]], ...] = (
        ("columns", 0, {"left", "right", "edges", "middle"}),
        ("rows", 1, {"top", "bottom", "edges", "middle"}),
    )
    for where, axis, explained in bands:
        if (excess := float(np.ptp(places.mean.mean(axis=axis))) / way) >= SPOT and not sides & explained:
            found.append(Finding(where, excess))
    row, column = np.unravel_index(np.argmax(places.mean), places.mean.shape)
    rest = float(np.quantile(places.mean, 0.9))
    if places.mean.size >= 9 and (excess := (float(places.mean[row, column]) - rest) / way) >= SPOT:
        down, across = places.edges
        at = (round((across[column] + across[column + 1]) / 2), round((down[row] + down[row + 1]) / 2))
        found.append(Finding("spot", excess, at))
    return sorted(found, key=lambda finding: -finding.excess)


class _Sums:
    """Of frames of one size."""

    def __init__(self, grid: PatchGrid) -> None:
        shape = (len(grid.rows), len(grid.columns))
        self.grid = grid
        self._n = 0
        self._total = np.zeros(shape)
        self._highest = np.full(shape, -np.inf)
        self._first = np.zeros(shape, np.int64)
        self._average: NDArray[np.float32] | None = None
        self._contrasts: list[list[float]] = []
        self._parts = _parts(grid)

    def add(self, image: UInt8Array, inspection: Inspection) -> None:
        scores = inspection.patch_scores.reshape(self._total.shape).astype(np.float64)
        self._n += 1
        self._total += scores
        np.maximum(self._highest, scores, out=self._highest)
        self._first[np.unravel_index(np.argmax(scores), scores.shape)] += 1
        small = shrunk(image, AVERAGE_SIDE).astype(np.float32)
        self._average = small if self._average is None else self._average + small
        self._contrasts.append(
            [float(scores[more].mean() - scores[less].mean()) if more.any() and less.any() else np.nan
             for more, less in self._parts]
        )  # fmt: skip

    def places(self) -> Places:
        if self._average is None:
            raise ValueError("no frame")
        average = (self._average / self._n).round().astype(np.uint8)
        return Places(
            self.grid, self._n, self._total / self._n, self._highest, self._first, average, np.array(self._contrasts)
        )


def _parts(grid: PatchGrid) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Masks (R, C) of the pairs to compare: right and left third, lower and upper third, edges and middle."""
    height, width = grid.prepared_size
    down = ((grid.rows + grid.patch / 2) / height)[:, None]
    across = ((grid.columns + grid.patch / 2) / width)[None, :]
    shape = (len(grid.rows), len(grid.columns))
    middle = np.zeros(shape, np.bool_)
    middle[1:-1, 1:-1] = True

    def full(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.broadcast_to(mask, shape)

    return [
        (full(across > 2 / 3), full(across < 1 / 3)),
        (full(down > 2 / 3), full(down < 1 / 3)),
        (~middle, middle),
    ]


def _borders(starts: NDArray[np.int32], patch: int, length: int) -> list[float]:
    """Midway between the middles of neighbouring patches, and both ends."""
    middles = starts + patch / 2
    return [0.0, *((middles[1:] + middles[:-1]) / 2).tolist(), float(length)]


def _cut(name: str, image: UInt8Array, inspection: Inspection, index: int) -> Patch:
    box = inspection.grid.box(index)
    outer = box.grown(max(box.w, box.h) // 2)
    heat = inspection.grid.to_frame(inspection.heat)
    # Grey beyond the frame, so that all patches are shown at one scale.
    height, width = image.shape[:2]
    sides = (max(-outer.y, 0), max(outer.bottom - height, 0), max(-outer.x, 0), max(outer.right - width, 0))
    there = np.s_[max(outer.y, 0) : outer.bottom, max(outer.x, 0) : outer.right]
    grey = cv2.copyMakeBorder(image[there], *sides, cv2.BORDER_CONSTANT, value=(128, 128, 128))
    cold = cv2.copyMakeBorder(heat[there], *sides, cv2.BORDER_CONSTANT, value=0)
    return Patch(
        name=name,
        score=float(inspection.patch_scores[index]),
        box=box,
        picture=np.asarray(grey, np.uint8),
        heat=np.asarray(cold, np.float32),
        inside=Box(box.x - outer.x, box.y - outer.y, box.w, box.h),
    )
