"""AE-SSIM: an autoencoder trained for structural similarity (Bergmann et al., VISAPP 2019).

E and G minimise 1 - SSIM(x, G(E(x))), summed over pixels. SSIM is that of Wang et al. (IEEE TIP 2004): a Gaussian
window of 11 x 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03. Frames are judged by the map of 1 - SSIM, mean over
colour, as in the source; its mean over the patch stands in for the feature error.

Unlike in the source, the warm start minimises squared error: from untrained weights, 1 - SSIM may stay with one image
for all inputs for very long. ``--warm-start 0`` leaves it out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.losses import full
from train.methods.ae_l2 import SquaredErrorPlayer
from train.methods.method import Method
from train.networks import Critic, Encoder, Generator
from train.scorer import Scorer, Seen

RADIUS, DEVIATION = 5, 1.5
K1, K2 = 0.01, 0.03
RANGE = 2.0  # of pixels in [-1, 1]


class Dissimilarity(nn.Module):
    """1 - SSIM of two images, at every pixel.

    Wang et al. leave out the border; no pixel may go uninspected, so the window is cut off there and its rest weighs 1.
    """

    def __init__(self, size: int) -> None:
        """Make the window for images of side ``size``."""
        super().__init__()
        offsets = torch.arange(size, dtype=torch.float64) - torch.arange(size, dtype=torch.float64)[:, None]
        window = torch.exp(-((offsets / DEVIATION) ** 2) / 2) * (offsets.abs() <= RADIUS)
        # Row i weighs the pixels around i. No buffer: half precision must not round it, or E[x²] - E[x]² would be off.
        self._window = window / window.sum(1, keepdim=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, 3, S, S) twice, in [-1, 1] -> (N, 3, S, S), 0 (alike) to 2.

        With d = x - y, luminance is 1 - E[d]² / (E[x]² + E[y]² + C1) and contrast times structure 1 - var(d) /
        (var(x) + var(y) + C2): the source's formula, without its loss of digits where x and y are alike.
        """
        if self._window.device != x.device:  # once, since a recorded step must not copy from the host
            self._window = self._window.to(x.device)
        d = x - y
        images = torch.cat([x, y, d], dim=1)
        means = self._blurred(images)
        variances = self._blurred(images * images) - means * means
        (mean_x, mean_y, mean_d), (var_x, var_y, var_d) = ((t[:, :3], t[:, 3:6], t[:, 6:]) for t in (means, variances))
        # Pixels of the paper are 0 or more; only luminance knows the difference.
        light_x, light_y = mean_x + RANGE / 2, mean_y + RANGE / 2
        luminance = mean_d * mean_d / (light_x * light_x + light_y * light_y + (K1 * RANGE) ** 2)
        structure = var_d / (var_x + var_y + (K2 * RANGE) ** 2)
        return luminance + structure - luminance * structure

    def _blurred(self, images: Tensor) -> Tensor:
        """Weighted means, W·image·Wᵀ; each product a 1 x 1 convolution of rows or columns as channels."""
        channels, size, _ = images.shape[1:]
        window = self._window.to(images.dtype).view(size, size, 1, 1)
        down = functional.conv2d(images.reshape(-1, size, 1, size), window)
        across = functional.conv2d(down.transpose(1, 3), window)
        return across.transpose(1, 3).reshape(-1, channels, size, size)


class SsimPlayer(SquaredErrorPlayer):
    """E and G minimise squared error in the warm start, then 1 - SSIM."""

    def __init__(self, encoder: Encoder, generator: Generator) -> None:
        super().__init__(encoder, generator)
        self.dissimilarity = Dissimilarity(generator.image_size)

    def forward(
        self, x: Tensor, z: Tensor | None, alpha: float, critic: Critic, source: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch, scalars, ``dissimilarity`` as a mean; x (N, 3, S, S) in [-1, 1].

        Without z, in the warm start, those of :class:`SquaredErrorPlayer`.
        """
        if z is None:
            return super().forward(x, z, alpha, critic, source)
        reconstruction = self.generator(self.encoder(x))
        # Half precision would leave nothing of small variances.
        with torch.autocast(x.device.type, enabled=False):
            dissimilarity = self.dissimilarity(full(x), full(reconstruction)).mean()
        # Summed as CBiGAN's losses are: a mean's gradients are no larger than Adam's epsilon, and nothing is learned.
        return {"total": dissimilarity * x[0].numel(), "dissimilarity": dissimilarity}


class SsimScorer(Scorer):
    """Judges by the map of 1 - SSIM."""

    own_map = True

    def __init__(self, encoder: Encoder, generator: Generator, *others: Any) -> None:  # noqa: ANN401 - Scorer's own
        super().__init__(encoder, generator, *others)
        self.dissimilarity = Dissimilarity(generator.image_size)

    def _judged(self, seen: Seen) -> tuple[Tensor, ...]:
        anomaly_map = self.dissimilarity(seen.x, seen.reconstruction).sum(dim=1) * (1 / 3)
        return anomaly_map.sum(dim=(1, 2)) * (1 / self.generator.image_size**2), anomaly_map


METHOD = Method(
    source="autoencoder with structural similarity (Bergmann et al., *Improving unsupervised defect segmentation by "
    "applying structural similarity to autoencoders*, VISAPP 2019)",
    score="the highest value of the smoothed map of 1 − SSIM",
    settings={"alpha": 1.0, "lambda": 1.0, "locator": False},
    defaults={"warm_start": 0.2, "smoothing": 1.5},
    ge_player=SsimPlayer,
    scorer=SsimScorer,
)
