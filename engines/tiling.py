"""From frames to patches and back. Training-side evaluation and the station tile with this one code.

No pixel goes uninspected: where the side is no multiple of the stride, a last row or column of patches is
aligned to the border.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from engines.engine import Float32Array, UInt8Array
from engines.geometry import Box
from engines.manifest import Preprocessing

Size = tuple[int, int]
"""(height, width) in pixels."""
Pixels = TypeVar("Pixels", UInt8Array, Float32Array)


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Where the patches of a frame lie.

    Attributes:
        frame_size: (height, width) of the camera frame.
        roi: the part of the frame that is inspected, frame pixels.
        prepared_size: (height, width) of the ROI after resizing, which is what the patches are cut from.
        patch: side of a patch, prepared pixels.
        rows: int32 (R,), top row of each row of patches, ascending.
        columns: int32 (C,), left column of each column of patches, ascending.
    """

    frame_size: Size
    roi: Box
    prepared_size: Size
    patch: int
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]

    @property
    def n(self) -> int:
        """Number of patches, R·C."""
        return len(self.rows) * len(self.columns)

    @property
    def scale(self) -> float:
        """Prepared pixels per frame pixel; the geometric mean, where height and width are resized differently."""
        return math.sqrt(math.prod(self.prepared_size) / (self.roi.w * self.roi.h))

    @property
    def origins(self) -> NDArray[np.int32]:
        """int32 (N, 2): (y, x) of every patch in prepared pixels, row-major."""
        y, x = np.meshgrid(self.rows, self.columns, indexing="ij")
        return np.stack((y.ravel(), x.ravel()), axis=1)

    def box(self, index: int) -> Box:
        """Where patch ``index`` lies in the frame: the smallest box of whole frame pixels that holds it."""
        y = int(self.rows[index // len(self.columns)])
        x = int(self.columns[index % len(self.columns)])
        return self.to_frame_box(Box(x, y, self.patch, self.patch))

    def to_frame_box(self, box: Box) -> Box:
        """The smallest box of whole frame pixels that holds ``box``, given in prepared pixels."""
        height, width = self.prepared_size
        left, top = box.x * self.roi.w // width, box.y * self.roi.h // height
        right = -(-box.right * self.roi.w // width)  # rounded up
        bottom = -(-box.bottom * self.roi.h // height)
        return Box(self.roi.x + left, self.roi.y + top, right - left, bottom - top)

    def assemble(self, residual: Float32Array) -> Float32Array:
        """Put the patches' maps together; where patches overlap, their mean.

        Args:
            residual: float32 (N, P, P), in the order of ``origins``.

        Returns:
            float32 (h, w), prepared pixels.
        """
        P = self.patch
        if residual.shape != (self.n, P, P):
            raise ValueError(f"residual has shape {residual.shape}, the grid needs {(self.n, P, P)}")
        height, width = self.prepared_size
        maps = residual.reshape(len(self.rows), len(self.columns), P, P)
        total = np.empty((height, width), np.float32)
        # Rows and columns are independent, so R + C additions of whole strips do the work of R·C patches.
        apart = len(self.rows) * P == height
        strips = total.reshape(-1, P, width) if apart else np.empty((len(self.rows), P, width), np.float32)
        for column, (x, shared) in enumerate(_overlaps(self.columns, P)):
            strips[:, :, x : x + shared] += maps[:, column, :, :shared]
            strips[:, :, x + shared : x + P] = maps[:, column, :, shared:]
        for row, (y, shared) in enumerate([] if apart else _overlaps(self.rows, P)):
            total[y : y + shared] += strips[row, :shared]
            total[y + shared : y + P] = strips[row, shared:]
        several, count = _several(self.rows, P)
        total[several] /= count[:, None]
        several, count = _several(self.columns, P)
        total[:, several] /= count
        return total

    def peaks(self, prepared_map: Float32Array) -> Float32Array:
        """The highest value in each patch.

        Args:
            prepared_map: float32 (h, w), prepared pixels.

        Returns:
            float32 (N,), in the order of ``origins``.
        """
        self._check(prepared_map)
        P = self.patch
        strips = np.stack([prepared_map[y : y + P].max(axis=0) for y in self.rows])
        peaks = np.stack([strips[:, x : x + P].max(axis=1) for x in self.columns], axis=1)
        return peaks.ravel()

    def to_frame(self, prepared_map: Float32Array) -> Float32Array:
        """Bring a map from prepared to frame pixels.

        Args:
            prepared_map: float32 (h, w), prepared pixels.

        Returns:
            float32 (frame h, frame w); zero outside the ROI.
        """
        self._check(prepared_map)
        x, y, w, h = self.roi
        frame_map = np.zeros(self.frame_size, np.float32)
        frame_map[y : y + h, x : x + w] = _resize(prepared_map, (h, w))
        return frame_map

    def _check(self, prepared_map: Float32Array) -> None:
        if prepared_map.shape != self.prepared_size:
            raise ValueError(f"map has shape {prepared_map.shape}, the grid needs {self.prepared_size}")


class Tiler:
    """Cuts frames into the patches that a model was trained on."""

    def __init__(self, preprocessing: Preprocessing, roi: Box | None = None) -> None:
        """Remember how to cut.

        Args:
            preprocessing: from the bundle's manifest.
            roi: the part of the frame to inspect, frame pixels; None for all of it.

        Raises:
            ValueError: the ROI is empty or starts left of or above the frame.
        """
        if roi is not None and (roi.x < 0 or roi.y < 0 or roi.w < 1 or roi.h < 1):
            raise ValueError(f"region of interest {tuple(roi)} (x, y, width, height) is not inside any frame")
        self.preprocessing = preprocessing
        self.roi = roi
        self._grid: PatchGrid | None = None

    def grid(self, frame_size: Size) -> PatchGrid:
        """Where the patches of a frame of ``frame_size`` (height, width) lie; the last answer is kept.

        Raises:
            ValueError: frame or ROI are smaller than a patch, or the ROI reaches outside; says what to do.
        """
        grid = self._grid
        if grid is None or grid.frame_size != frame_size:
            grid = self._grid = self._lay_out(frame_size)
        return grid

    def prepare(self, image: UInt8Array) -> UInt8Array:
        """Crop to the ROI, resize, and turn into the model's colour.

        Args:
            image: uint8 (H, W, 3), BGR.

        Returns:
            uint8 (h, w, 3), RGB; for a gray model, three equal channels.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"a frame is uint8 (H, W, 3), not {image.dtype} {image.shape}")
        grid = self.grid(image.shape[:2])
        x, y, w, h = grid.roi
        resized = _resize(image[y : y + h, x : x + w], grid.prepared_size)
        if self.preprocessing.colour == "gray":
            prepared = cv2.cvtColor(cv2.cvtColor(resized, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2RGB)
        else:
            prepared = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
        return np.asarray(prepared, dtype=np.uint8)

    def patches(self, prepared: UInt8Array) -> UInt8Array:
        """Cut a prepared frame.

        Args:
            prepared: uint8 (h, w, 3), as ``prepare`` returns it.

        Returns:
            uint8 (N, P, P, 3), contiguous, in the order of the grid's ``origins``.
        """
        P, stride = self.preprocessing.patch_size, self.preprocessing.stride
        rows, columns = _starts(prepared.shape[0], P, stride), _starts(prepared.shape[1], P, stride)
        windows = sliding_window_view(prepared, (P, P, 3))[:, :, 0]
        return np.ascontiguousarray(windows[np.ix_(rows, columns)]).reshape(-1, P, P, 3)

    def _lay_out(self, frame_size: Size) -> PatchGrid:
        height, width = frame_size
        pre = self.preprocessing
        roi = self.roi or Box(0, 0, width, height)
        if roi.right > width or roi.bottom > height:
            raise ValueError(
                f"region of interest {tuple(roi)} (x, y, width, height) reaches outside the "
                f"{width} x {height} frame; correct it or the camera's resolution"
            )
        size = pre.frame_size or (round(roi.h * pre.scale), round(roi.w * pre.scale))
        if min(size) < pre.patch_size:
            raise ValueError(
                f"{roi.w} x {roi.h} frame pixels give {size[1]} x {size[0]} at scale {pre.scale:g}, less "
                f"than one patch of {pre.patch_size} x {pre.patch_size}; use a larger frame or region of "
                "interest, or train with a larger scale"
            )
        return PatchGrid(
            frame_size=(height, width),
            roi=roi,
            prepared_size=size,
            patch=pre.patch_size,
            rows=_starts(size[0], pre.patch_size, pre.stride),
            columns=_starts(size[1], pre.patch_size, pre.stride),
        )


def _starts(length: int, patch: int, stride: int) -> NDArray[np.int32]:
    """First pixels of the patches along one side; the last patch ends at the border."""
    if length < patch:
        raise ValueError(f"{length} pixels are less than one patch of {patch}")
    starts = np.arange(0, length - patch + 1, stride, dtype=np.int32)
    if starts[-1] + patch < length:
        starts = np.append(starts, np.int32(length - patch))
    return starts


def _overlaps(starts: NDArray[np.int32], patch: int) -> list[tuple[int, int]]:
    """First pixel of each patch along one side, and how many of its pixels the patches before it hold, too."""
    ends = np.concatenate(([0], starts[:-1] + patch))
    return [(int(start), int(end - start)) for start, end in zip(starts, ends, strict=True)]


def _several(starts: NDArray[np.int32], patch: int) -> tuple[slice, Float32Array]:
    """The stretch along one side that holds all pixels of more than one patch, and how many patches hold each there."""
    count = np.zeros(int(starts[-1]) + patch, np.float32)
    for start in starts:
        count[start : start + patch] += 1
    shared = np.flatnonzero(count > 1)
    several = slice(int(shared[0]), int(shared[-1]) + 1) if shared.size else slice(0)
    return several, count[several]


def _resize(image: Pixels, size: Size) -> Pixels:
    """Resize to (height, width): area means when shrinking, lest fine texture alias; else linear."""
    height, width = size
    if image.shape[:2] == size:
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), dtype=image.dtype)
