"""The structure of E, G and D as plain data: settings need it, and need not wait until torch is loaded."""

from dataclasses import dataclass
from typing import Literal

WIDTHS = (1, 2, 3, 4, 8, 16)  # filters of blocks 0..5, in units of the width
IMAGE_SIZE: dict[str, int] = {"texture": 64, "object": 128}
LINEAR_FEATURE_LAYER = "block0.conv1"
FEATURE_LAYERS = (LINEAR_FEATURE_LAYER, *(f"block{i}" for i in range(len(WIDTHS))))


@dataclass(frozen=True)
class Architecture:
    """Structural settings: two models with equal ones can exchange weights.

    Attributes:
        category: ``texture`` (64 x 64 patches) or ``object`` (128 x 128 images).
        width: filters of the first block.
        latent_size: entries of z.
        folded: the networks see pixels two by two: their first and last stage, at full resolution the dearest of all,
            work at half of it (docs/decisions/0071). False is the paper's structure.
        bias: bias on every convolution and dense layer. The authors' code has them only on the last convolution
            of a block and on output layers (a slip in its history, REFERENCE item 2); False reproduces that.
    """

    category: Literal["texture", "object"] = "texture"
    width: int = 16
    latent_size: int = 64
    bias: bool = True
    folded: bool = False

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        return IMAGE_SIZE[self.category]
