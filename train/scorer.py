"""The scorer: E, G and D's feature layer fused into one function, uint8 patches in, scores out (eq. 7-9)."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.architecture import FEATURE_LAYERS, LINEAR_FEATURE_LAYER
from train.networks import Block, Critic, Encoder, Fold, Generator, Locator

RESIDUAL_WEIGHT = 0.25  # in the anomaly map, beside the locator's log-odds


@dataclass(frozen=True)
class MapScales:
    """How residual and log-odds become one anomaly map.

    Each less its median on good material, in units of the distance from there to its 99.9th percentile; the residual
    counts a quarter (docs/decisions/0073). Each is (median, 99.9th percentile) here, as :func:`train.export.fit_scales`
    measures them.
    """

    residual: tuple[float, float] = (0.0, 1.0)
    log_odds: tuple[float, float] = (0.0, 1.0)

    def anomaly(self, residual: Tensor, log_odds: Tensor) -> Tensor:
        """The map, in the shape of both."""
        (low_r, high_r), (low_l, high_l) = self.residual, self.log_odds
        factor_r, factor_l = RESIDUAL_WEIGHT / (high_r - low_r), 1 / (high_l - low_l)
        return residual * factor_r + log_odds * factor_l - (low_r * factor_r + low_l * factor_l)


class Seen(NamedTuple):
    """What the networks made of N patches, before it is judged; in float32 or better, but for ``encoded``.

    Attributes:
        x: (N, 3, P, P), the patches in [-1, 1].
        encoded: (N, latent_size), E(x), in the precision of the weights.
        reconstruction: (N, 3, P, P), G(E(x)).
        difference: (N, 3, P, P), x - G(E(x)).
        residual: (N, P, P), |x - G(E(x))| averaged over colour.
    """

    x: Tensor
    encoded: Tensor
    reconstruction: Tensor
    difference: Tensor
    residual: Tensor


class Scorer(nn.Module):
    """What a bundle's graph computes.

    Scaling to [-1, 1] and the change from NHWC to NCHW are inside, so that no caller can get them wrong.

    Args:
        encoder: E.
        generator: G.
        critic: D; only its features up to ``feature_layer`` are used, and none of them depends on z.
        feature_layer: f_D of eq. 9, one of ``FEATURE_LAYERS``.
        locator: L, for the anomaly map; None: there is none.
        scales: what good material looks like to both halves of the map; needed with a locator.
    """

    own_map: ClassVar[bool] = False
    """Whether the anomaly map needs no locator; such a scorer makes one of its own."""

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        critic: Critic,
        feature_layer: str,
        locator: Locator | None = None,
        scales: MapScales | None = None,
    ) -> None:
        super().__init__()
        if feature_layer not in FEATURE_LAYERS:
            raise ValueError(f"feature layer {feature_layer!r} is none of {', '.join(FEATURE_LAYERS)}")
        self.encoder = encoder
        self.generator = generator
        self.critic = critic
        self.feature_layer = feature_layer
        self.locator = locator
        self.scales = scales or MapScales()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    @property
    def has_map(self) -> bool:
        """Whether an ``anomaly_map`` is among the outputs."""
        return self.own_map or self.locator is not None

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        """Score patches, in the precision of the weights.

        With float16 weights only the networks compute in float16. The scaled image, its difference from the
        reconstruction and the sums stay float32: float16 would round small differences off, and ends at 65,504.

        Args:
            patches: uint8 (N, P, P, 3) in the model's colour.

        Returns:
            ``reconstruction_error`` (N,), L_R of eq. 8; ``feature_error`` (N,), L_fD of eq. 9, or what a method of
            ``train.methods`` puts there; ``residual`` (N, P, P), |x - G(E(x))| averaged over colour; where
            :attr:`has_map`, ``anomaly_map`` (N, P, P), with a locator as :class:`MapScales` has it; ``reconstruction``
            (N, 3, P, P), G(E(x)) in [-1, 1].
        """
        dtype = self.generator.out.weight.dtype
        exact = torch.promote_types(dtype, torch.float32)
        x = patches.to(exact).permute(0, 3, 1, 2) * (1 / 127.5) - 1
        encoded = self.encoder(x.to(dtype))
        reconstruction = self.generator(encoded).to(exact)
        difference = x - reconstruction
        colour_sum = difference.abs().sum(dim=1)  # one pass over the colours serves both outputs
        seen = Seen(x, encoded, reconstruction, difference, colour_sum * (1 / 3))
        feature_error, *anomaly_map = self._judged(seen)
        return colour_sum.sum(dim=(1, 2)), feature_error, seen.residual, *anomaly_map, reconstruction

    def _judged(self, seen: Seen) -> tuple[Tensor, ...]:
        """``feature_error``, and ``anomaly_map`` where :attr:`has_map`."""
        if self.locator is None:
            return (self._feature_error(seen),)
        log_odds = self.upsample(self.locator(seen.x, seen.reconstruction).to(seen.x.dtype)).sum(dim=1)
        return self._feature_error(seen), self.scales.anomaly(seen.residual, log_odds)

    def _feature_error(self, seen: Seen) -> Tensor:
        if self.feature_layer == LINEAR_FEATURE_LAYER:
            # f_D(x) - f_D(y) = K * (x - y) for a convolution K: half the work, and its bias cancels.
            conv1 = cast("Block | Fold", self.critic.trunk.blocks[0]).conv1
            difference = seen.difference.to(conv1.weight.dtype)
            features = functional.conv2d(difference, conv1.weight, stride=conv1.stride, padding=1)
            return features.to(seen.difference.dtype).abs().sum(dim=(1, 2, 3))
        return self._feature_difference(seen).abs().sum(dim=(0, 2, 3, 4))

    def _feature_difference(self, seen: Seen) -> Tensor:
        """f_D(x) - f_D(G(E(x))), (1, N, C, h, w)."""
        pixels = torch.cat([seen.x, seen.reconstruction]).to(self.generator.out.weight.dtype)
        both = self.critic.features(pixels, self.feature_layer).to(seen.x.dtype)
        pair = both.reshape(
            2, -1, *both.shape[1:]
        )  # (2, N, C, h, w); slicing the pair needs no arithmetic on N in the graph
        return pair[:1] - pair[1:]
