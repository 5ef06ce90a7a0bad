"""How good a model is: image auROC, maximum balanced accuracy, pixel auROC, AU-PRO.

Image scores are few, so their metrics are exact. Pixels are many (10⁷ to 10⁹ in a test
set), so their curves come from histograms of fixed size; see ``PixelCurve``.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, roc_curve

from engines.engine import Float32Array

PRO_LIMIT = 0.3
"""Highest false positive rate that AU-PRO integrates to (Bergmann et al., IJCV 129, 2021, section 5.2)."""

_SHIFT = 12  # drops 12 of float32's 23 mantissa bits: bins are 2⁻¹¹ (0.05 %) of the value wide
_N_BINS = 1 << (32 - _SHIFT)
_SIGN = np.uint32(1 << 31)


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    """How well image scores tell anomalous from good.

    Attributes:
        auroc: area under the ROC curve.
        balanced_accuracy: the largest (TPR + TNR) / 2 over all thresholds (paper, section V.C).
        threshold: where it is largest; from this score on an image is called anomalous.
    """

    auroc: float
    balanced_accuracy: float
    threshold: float


def image_metrics(good: ArrayLike, anomalous: ArrayLike) -> ImageMetrics:
    """Metrics of image scores.

    Raises:
        ValueError: one of the two classes is empty, or a score is not finite.
    """
    negatives, positives = np.asarray(good, np.float64), np.asarray(anomalous, np.float64)
    if not negatives.size or not positives.size:
        raise ValueError(f"{negatives.size} good and {positives.size} anomalous scores; both must be there")
    scores = np.concatenate([negatives, positives])
    labels = np.repeat([0, 1], [negatives.size, positives.size])
    fpr, tpr, thresholds = roc_curve(labels, scores)
    balanced = (tpr + 1 - fpr) / 2
    best = int(balanced.argmax())
    # At chance the best "threshold" may be beyond all scores, which scikit-learn writes as infinity.
    threshold = min(float(thresholds[best]), float(np.nextafter(scores.max(), np.inf)))
    return ImageMetrics(float(auc(fpr, tpr)), float(balanced[best]), threshold)


class PixelCurve:
    """Pixel auROC and AU-PRO of a test set, image by image, in 24 MiB whatever the set's size.

    PRO of a threshold is the mean, over all connected regions of the ground truth, of the part of the region that
    lies over the threshold (Bergmann et al., CVPR 2019, section 4.2). So the PRO curve is a ROC curve whose positive
    pixels weigh 1 / (area of their region), and three histograms over the map are all that either metric needs.

    Bins are the upper bits of the float32 values: pixels whose values differ by less than 0.05 % may count as
    tied. ``auroc_error_bound`` tells how much that can matter.
    """

    def __init__(self) -> None:
        self.normal: NDArray[np.float64] = np.zeros(_N_BINS)
        self.defective: NDArray[np.float64] = np.zeros(_N_BINS)
        self.region_share: NDArray[np.float64] = np.zeros(_N_BINS)
        self.n_regions = 0

    def add(self, heat: Float32Array, mask: NDArray[np.bool_]) -> None:
        """Add one image.

        Args:
            heat: float32 (H, W), the higher the less normal: a residual or an anomaly map.
            mask: bool (H, W), True on the defect; all False for a good image.

        Raises:
            ValueError: shapes differ, or the map holds NaN or infinity.
        """
        if heat.shape != mask.shape:
            raise ValueError(f"heat {heat.shape} and mask {mask.shape} differ in shape")
        if not np.isfinite(heat).all():
            raise ValueError("the map holds NaN or infinity")
        # Bits of non-negative floats sort as the floats do, those of negative ones the other way round; + 0 turns
        # -0.0 into 0.0.
        bits = (np.ascontiguousarray(heat, np.float32) + np.float32(0)).view(np.uint32)
        bins = np.where(bits & _SIGN, ~bits, bits | _SIGN) >> _SHIFT
        self.normal += np.bincount(bins[~mask], minlength=_N_BINS)
        if not mask.any():
            return
        n_labels, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        areas = np.bincount(labels[mask], minlength=n_labels)
        self.defective += np.bincount(bins[mask], minlength=_N_BINS)
        self.region_share += np.bincount(bins[mask], weights=1 / areas[labels[mask]], minlength=_N_BINS)
        self.n_regions += n_labels - 1

    def merged(self, other: "PixelCurve") -> "PixelCurve":
        """The curve of both sets of images together."""
        both = PixelCurve()
        both.normal = self.normal + other.normal
        both.defective = self.defective + other.defective
        both.region_share = self.region_share + other.region_share
        both.n_regions = self.n_regions + other.n_regions
        return both

    def auroc(self) -> float | None:
        """Area under the pixel ROC curve; None without normal or without defective pixels."""
        curve = self._curve(self.defective)
        return None if curve is None else float(auc(*curve))

    def auroc_error_bound(self) -> float:
        """How far ``auroc`` can be from the exact value: half the pairs of pixels that share a bin."""
        pairs = self.normal.sum() * self.defective.sum()
        return float(self.normal @ self.defective / (2 * pairs)) if pairs else 0.0

    def au_pro(self, limit: float = PRO_LIMIT) -> float | None:
        """Area under the PRO curve up to the false positive rate ``limit``, divided by it, so that 1 is perfect.

        The rate counts every pixel outside the ground truth, those of good images too. None without regions.
        """
        curve = self._curve(self.region_share)
        if curve is None:
            return None
        fpr, pro = curve
        last = int(np.searchsorted(fpr, limit))  # first point at or beyond the limit: the line to it is cut there
        cut = pro[last - 1] + (pro[last] - pro[last - 1]) * (limit - fpr[last - 1]) / (fpr[last] - fpr[last - 1])
        return float(auc(np.append(fpr[:last], limit), np.append(pro[:last], cut)) / limit)

    def pro_curve(self, n: int = 200) -> list[tuple[float, float]] | None:
        """About ``n`` points of the PRO curve, (false positive rate, PRO), from (0, 0) to (1, 1); None without regions.

        They are evenly spread along the curve, so that a steep rise is as smooth as a flat end.
        """
        curve = self._curve(self.region_share)
        if curve is None:
            return None
        fpr, pro = curve
        kept = np.unique(np.searchsorted(fpr + pro, np.linspace(0, 2, n)).clip(max=len(fpr) - 1))
        return [(min(float(fpr[i]), 1.0), min(float(pro[i]), 1.0)) for i in kept]  # sums may end a rounding beyond 1

    def _curve(self, positives: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """False and true positive rates, from the highest threshold (0, 0) to the lowest (1, 1)."""
        if not self.normal.any() or not positives.any():
            return None
        fpr = np.cumsum(self.normal[::-1]) / self.normal.sum()
        tpr = np.cumsum(positives[::-1]) / positives.sum()
        return np.append(0.0, fpr), np.append(0.0, tpr)
