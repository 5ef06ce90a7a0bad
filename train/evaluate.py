"""Evaluation of a bundle on labelled images, by the engine and the tiling that the station uses.

So what is measured is what will run: not the training code's idea of the model.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine, Float32Array, UInt8Array
from engines.images import read_image
from engines.judging import Judging
from engines.manifest import Description
from engines.tiling import PatchGrid, Tiler
from train.errors import DataError
from train.labelled import LabelledImage
from train.metrics import PixelCurve, image_metrics


@dataclass(frozen=True, slots=True)
class ScoredFrame:
    """One frame, as the model sees it.

    Attributes:
        image: uint8 (H, W, 3), BGR.
        grid: where its patches lie.
        patches: uint8 (N, P, P, 3), the model's colour.
        score: max over patches of A(x) (eq. 7; paper, section V.B), or of the smoothed anomaly map.
        residual: float32 (H, W), |x - G(E(x))| in frame pixels, 0..2.
        heat: float32 (H, W), frame pixels: what the frame is judged by; the residual, or the smoothed anomaly map.
    """

    image: UInt8Array
    grid: PatchGrid
    patches: UInt8Array
    score: float
    residual: Float32Array
    heat: Float32Array


class FrameScorer:
    """Scores image files with a bundle."""

    def __init__(self, description: Description, engine: Engine) -> None:
        """Wire the parts.

        Args:
            description: of the model, such as a bundle's manifest.
            engine: its scorer; stays the caller's to close.
        """
        self._engine = engine
        self._tiler = Tiler(description.preprocessing)
        self._judging = Judging.of(description)

    def score(self, path: Path) -> ScoredFrame:
        """Score one file.

        Raises:
            ImageError: it cannot be read.
            DataError: it is too small for the model, or its score is not finite.
        """
        try:
            return self.score_image(read_image(path))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def score_image(self, image: UInt8Array) -> ScoredFrame:
        """Score a frame, uint8 (H, W, 3), BGR.

        Raises:
            DataError: it is too small for the model, or its score is not finite.
        """
        try:
            grid = self._tiler.grid((image.shape[0], image.shape[1]))
        except ValueError as error:
            raise DataError(str(error)) from error
        patches = self._tiler.patches(self._tiler.prepare(image))
        scores = self._engine.score(patches)
        judged = self._judging(scores, grid)
        score = float(judged.patch_scores.max())
        if not np.isfinite(score):
            raise DataError(f"the model's score is {score}; the weights are broken")
        residual = grid.to_frame(grid.assemble(scores.residual))
        return ScoredFrame(image, grid, patches, score, residual, grid.to_frame(judged.heat))


@dataclass(frozen=True, slots=True)
class Metrics:
    """Quality on good images against one type of defect, or all types; None where there is no mask.

    ``pixel_auroc`` and ``au_pro`` count all good images and those defective ones whose mask marks something.
    """

    n_anomalous: int
    image_auroc: float
    balanced_accuracy: float
    pixel_auroc: float | None
    au_pro: float | None

    def as_json(self) -> dict[str, float | None]:
        """The four figures by their names in the report."""
        return {
            "image_auroc": self.image_auroc,
            "balanced_accuracy": self.balanced_accuracy,
            "pixel_auroc": self.pixel_auroc,
            "au_pro": self.au_pro,
        }


@dataclass(frozen=True)
class Evaluation:
    """Result of evaluating a bundle.

    Attributes:
        scored: every image with its score, in the order given.
        overall: metrics over all types of defect.
        per_defect: metrics of each type alone, against all good images.
        n_good: number of good images.
        without_mask: defective images that have no mask.
        empty_mask: defective images whose mask marks nothing; where their defect is, nobody knows, so they do not
            count in pixel metrics.
        threshold: of the highest balanced accuracy over all types; from this score on an image is called defective.
        pro_curve: (false positive rate, PRO) points over all types; None where there is no mask.
    """

    scored: list[tuple[LabelledImage, float]]
    overall: Metrics
    per_defect: dict[str, Metrics]
    n_good: int
    without_mask: list[Path]
    empty_mask: list[Path]
    threshold: float
    pro_curve: list[tuple[float, float]] | None

    def scores_of(self, defect: str | None) -> list[float]:
        """Scores of the images with this defect, or of the good ones."""
        return [score for image, score in self.scored if image.defect == defect]

    def as_json(self) -> dict[str, Any]:
        """What ``station-train evaluate --json`` prints."""
        return {
            **self.overall.as_json(),
            "per_defect": {
                defect: {**metrics.as_json(), "n_anomalous": metrics.n_anomalous}
                for defect, metrics in self.per_defect.items()
            },
            "n_good": self.n_good,
            "n_anomalous": self.overall.n_anomalous,
        }


def evaluate(
    images: list[LabelledImage], scorer: FrameScorer, on_image: Callable[[], None] = lambda: None
) -> Evaluation:
    """Score ``images`` and measure how well the scores tell defects from good.

    Memory does not grow with the number of images: pixels go into histograms at once.

    Args:
        images: good and defective ones, at least one each.
        scorer: of the bundle.
        on_image: called after each image.
    """
    curves: defaultdict[str | None, PixelCurve] = defaultdict(PixelCurve)
    scores: defaultdict[str | None, list[float]] = defaultdict(list)
    scored: list[tuple[LabelledImage, float]] = []
    without_mask: list[Path] = []
    empty_mask: list[Path] = []
    for image in images:
        frame = scorer.score(image.path)
        scored.append((image, frame.score))
        scores[image.defect].append(frame.score)
        mask = image.read_mask(frame.grid.frame_size)
        if mask is None:
            without_mask.append(image.path)
        elif image.defect is not None and not mask.any():
            empty_mask.append(image.path)
        else:
            curves[image.defect].add(frame.heat, mask)
        on_image()

    good, good_pixels = scores.pop(None), curves.pop(None, PixelCurve())
    everything = good_pixels
    for curve in curves.values():
        everything = everything.merged(curve)
    anomalous = np.concatenate(list(scores.values()))
    return Evaluation(
        scored=scored,
        overall=_metrics(good, anomalous, everything),
        per_defect={
            defect: _metrics(good, np.array(scores[defect]), good_pixels.merged(curves[defect]))
            for defect in sorted(filter(None, scores))
        },
        n_good=len(good),
        without_mask=without_mask,
        empty_mask=empty_mask,
        threshold=image_metrics(good, anomalous).threshold,
        pro_curve=everything.pro_curve(),
    )


def _metrics(good: list[float], anomalous: NDArray[np.float64], pixels: PixelCurve) -> Metrics:
    image = image_metrics(good, anomalous)
    return Metrics(len(anomalous), image.auroc, image.balanced_accuracy, pixels.auroc(), pixels.au_pro())
