"""Pictures of what a model sees: input, reconstruction, residual, anomaly map and mask, one row a frame."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engines.engine import Float32Array, UInt8Array
from train.evaluate import Evaluation, FrameScorer, ScoredFrame
from train.graph import Reconstructor
from train.labelled import GOOD, LabelledImage

CASES_OF_A_KIND = 3
_CELL_INCHES = 2.4
_MAX_SIDE = 512  # pixels
Pixels = TypeVar("Pixels", UInt8Array, Float32Array)


@dataclass(frozen=True, slots=True)
class Case:
    """A frame to show, and why."""

    why: str
    image: LabelledImage

    @property
    def name(self) -> str:
        """Type of the defect and file name."""
        return f"{self.image.defect or GOOD}/{self.image.path.name}"


def pick_cases(evaluation: Evaluation, n: int = CASES_OF_A_KIND) -> list[Case]:
    """The worst and best: good images that score highest, defects that score lowest, then the clearest of both."""
    ranked = sorted(evaluation.scored, key=lambda pair: pair[1])
    good = [image for image, _ in ranked if image.defect is None]
    defective = [image for image, _ in ranked if image.defect is not None]
    return [
        *(Case("worst: good, scored high", image) for image in good[::-1][:n]),
        *(Case("worst: defect, scored low", image) for image in defective[:n]),
        *(Case("best: defect, scored high", image) for image in defective[::-1][:n]),
        *(Case("best: good, scored low", image) for image in good[:n]),
    ]


def draw_sheet(rows: Sequence["Shown"]) -> bytes:
    """Draw cases as a PNG: input, reconstruction G(E(x)), residual |x - G(E(x))|, anomaly map, and the mask's outline.

    Args:
        rows: what to show, at least one. Without a defective image among them there is no column for masks, without
            reconstructions none for these; and none for maps where frames are judged by A(x).
    """
    hottest, highest = (  # one scale for all rows
        max(float(picture.max()) for picture in pictures) or 1.0
        for pictures in ([row.residual for row in rows], [row.heat for row in rows])
    )
    any_defect = any(row.case.image.defect for row in rows)
    any_map = any(not np.array_equal(row.heat, row.residual) for row in rows)
    n_columns = 2 + (rows[0].reconstruction is not None) + any_map + any_defect
    figure = Figure(figsize=(n_columns * _CELL_INCHES, len(rows) * _CELL_INCHES * 1.15), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), n_columns, squeeze=False), rows, strict=True):
        cells = iter(axes)
        _show(next(cells), row.photo, f"{row.case.why}\n{row.case.name}")
        if row.reconstruction is not None:
            _show(next(cells), row.reconstruction, "reconstruction")
        scored = f"score {row.score:,.1f}"
        _show(next(cells), row.residual, "residual" if any_map else f"residual, {scored}", hottest)
        if any_map:
            _show(next(cells), row.heat, f"anomaly map, {scored}", highest)
        if any_defect:
            _show(next(cells), row.outlined, row.truth)
    scales = f"residual |x - G(E(x))|: black 0, yellow {hottest:.2f} of at most 2"
    if any_map:
        scales += f"; anomaly map: black 0 and less, yellow {highest:.1f}"
    figure.suptitle(scales, fontsize=7)
    return png(figure)


def _show(axes: Axes, picture: UInt8Array | Float32Array, title: str, hottest: float | None = None) -> None:
    axes.imshow(picture, cmap="inferno", vmin=0, vmax=hottest)  # the colour map is ignored for photographs
    axes.set_title(title, fontsize=7, loc="left")
    axes.set_axis_off()


@dataclass(frozen=True, slots=True)
class Shown:
    """Pictures of one case, small enough to keep: no side longer than ``_MAX_SIDE``.

    Attributes:
        case: which.
        photo: uint8 (h, w, 3), RGB.
        reconstruction: G(E(x)), like ``photo``; None without the networks for it.
        residual: float32 (h, w), |x - G(E(x))|.
        heat: float32 (h, w), what the frame is judged by; the residual, or the smoothed anomaly map.
        outlined: ``photo`` with the outline of the mask, if there is one.
        truth: what is known of the defect: "good", "mask", "no mask".
        score: of the frame.
    """

    case: Case
    photo: UInt8Array
    reconstruction: UInt8Array | None
    residual: Float32Array
    heat: Float32Array
    outlined: UInt8Array
    truth: str
    score: float

    @classmethod
    def of(cls, case: Case, scorer: FrameScorer, reconstructor: Reconstructor | None) -> "Shown":
        """Score the frame anew, so that no evaluation has to keep them all.

        Args:
            case: to show.
            scorer: of the bundle.
            reconstructor: of the bundle, if it can be had.
        """
        frame = scorer.score(case.image.path)
        photo: UInt8Array = np.ascontiguousarray(frame.image[..., ::-1])
        mask = case.image.read_mask(frame.grid.frame_size)
        return cls(
            case=case,
            photo=_shrunk(photo),
            reconstruction=None if reconstructor is None else _shrunk(_reconstruct(frame, reconstructor)),
            residual=_shrunk(frame.residual),
            heat=_shrunk(frame.heat),
            outlined=_shrunk(photo if mask is None else _outlined(photo, mask)),
            truth="good" if case.image.defect is None else "no mask" if mask is None else "mask",
            score=frame.score,
        )


def show(cases: Sequence[Case], scorer: FrameScorer, reconstructor: Reconstructor | None) -> list[Shown]:
    """Pictures of the cases; see ``Shown.of``."""
    return [Shown.of(case, scorer, reconstructor) for case in cases]


def png(figure: Figure) -> bytes:
    """The figure as a PNG without date or program, so that equal data gives equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _reconstruct(frame: ScoredFrame, reconstructor: Reconstructor) -> UInt8Array:
    """G(E(x)) of the whole frame, uint8 (H, W, 3), RGB; patches assembled as the residual is."""
    patches = reconstructor(frame.patches)
    channels = [frame.grid.to_frame(frame.grid.assemble(patches[..., c])) for c in range(3)]
    return np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)


def _outlined(photo: UInt8Array, mask: NDArray[np.bool_]) -> UInt8Array:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, max(mask.shape) // 256)
    picture = photo.copy()
    cv2.drawContours(picture, contours, -1, (255, 40, 40), thickness)
    return picture


def _shrunk(picture: Pixels) -> Pixels:
    scale = _MAX_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cast("Pixels", small)
