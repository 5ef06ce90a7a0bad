"""Test images with their labels and masks, in MVTec AD layout."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.images import IMAGE_SUFFIXES, find_images, read_image
from train.errors import DataError

GOOD = "good"
MASK_THRESHOLD = 128
"""Mask pixels from this on are defective; resized or compressed masks have grey edges."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One test image.

    Attributes:
        path: the image.
        defect: type of its defect, the folder's name; None for a good image.
        mask: its ground truth picture; None if it has none.
    """

    path: Path
    defect: str | None
    mask: Path | None

    def read_mask(self, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Where the image, of ``size`` (height, width), is defective.

        Returns:
            bool (height, width), all False for a good image; None where a defective image has no mask.

        Raises:
            DataError: the mask has another size.
            ImageError: the mask cannot be read.
        """
        if self.defect is None:
            return np.zeros(size, np.bool_)
        if self.mask is None:
            return None
        mask: NDArray[np.bool_] = read_image(self.mask)[..., 0] >= MASK_THRESHOLD
        if mask.shape != size:
            raise DataError(
                f"{self.mask}: {mask.shape[1]} x {mask.shape[0]} pixels, but {self.path} has {size[1]} x {size[0]}"
            )
        return mask


def find_labelled_images(data: Path) -> list[LabelledImage]:
    """Test images below ``data``: test/good/*, test/<defect>/*, ground_truth/<defect>/*_mask.png.

    Raises:
        DataError: no good or no defective image there.
    """
    test = data / "test"
    if not (test / GOOD).is_dir():
        raise DataError(
            f"{data}: no test/{GOOD}/ there; to evaluate, put good images into test/{GOOD}/, images of defects into "
            "test/<defect>/ and, if you have them, masks into ground_truth/<defect>/*_mask.png"
        )
    images: list[LabelledImage] = []
    for folder in sorted(path for path in test.iterdir() if path.is_dir() and not path.name.startswith(".")):
        defect = None if folder.name == GOOD else folder.name
        masks = _masks(data / "ground_truth" / folder.name) if defect else {}
        images += [LabelledImage(path, defect, masks.get(path.stem)) for path in find_images(folder)]
    n_good = sum(image.defect is None for image in images)
    if not 0 < n_good < len(images):
        raise DataError(
            f"{test}: {n_good} good and {len(images) - n_good} defective images; to evaluate, both must be there"
        )
    return images


def _masks(folder: Path) -> dict[str, Path]:
    """Masks by the stem of their image; data sets name them IMAGE_mask.png or IMAGE.png."""
    if not folder.is_dir():
        return {}
    return {
        path.stem.removesuffix("_mask"): path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
