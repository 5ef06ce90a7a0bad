"""f-AnoGAN: a generator, then an encoder for it (Schlegl et al., Medical Image Analysis 2019).

First G and D, which sees images only, play the Wasserstein game with gradient penalty on prior latents. Then both are
fixed, and E learns by the source's izi_f: with f the last features of D and κ = 1, it minimises

    mean (x - G(E(x)))² + κ·mean (f(x) - f(G(E(x))))²

which is also the score of a patch. The setting ``warm_start`` is the share of the second phase. As in the source D has
five steps for one of G. E learns with Adam without momentum in place of RMSProp; learning rates and their decay are
ours. E learns with the last weights of G; the averaged ones in the bundle are the same after some thousand steps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.losses import full
from train.methods.image_critic import ImageCritic
from train.methods.method import Method
from train.networks import Critic, Encoder, Generator
from train.scorer import Scorer, Seen

KAPPA = 1.0


class IziPlayer(nn.Module):
    """G against a fixed D, without E; then E, with both fixed."""

    def __init__(self, encoder: Encoder, generator: Generator) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator

    def forward(
        self, x: Tensor, z: Tensor | None, _alpha: float, critic: Critic, _source: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch, scalars; x (N, 3, S, S) in [-1, 1], z (N, latent_size), or None in the phase of E."""
        if z is not None:
            adversarial = -critic(self.generator(z), z).mean()
            return {"total": adversarial, "adversarial": adversarial}
        self.generator.requires_grad_(requires_grad=False)
        reconstruction = self.generator(self.encoder(x))
        self.generator.requires_grad_(requires_grad=True)
        pixels = functional.mse_loss(reconstruction, x)
        features = functional.mse_loss(critic.trunk(reconstruction), critic.trunk(x))
        return {"total": pixels + KAPPA * features, "pixel_error": pixels, "feature_error": features}


class ImageCriticPlayer(nn.Module):
    """D(x) against a fixed G: WGAN-GP on images."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(
        self, x: Tensor, _encoded: Tensor, generated: Tensor, z: Tensor, eps: Tensor, gp_weight: float
    ) -> dict[str, Tensor]:
        """Losses of one batch, scalars; x and generated (N, 3, S, S), generated is G(z), detached; eps (N, 1)."""
        real, fake = self.critic(x, z).mean(), self.critic(generated, z).mean()
        penalty = image_gradient_penalty(self.critic, x, generated, eps)
        return {
            "total": fake - real + gp_weight * penalty,
            "wasserstein": real - fake,
            "gradient_penalty": penalty,
        }


def image_gradient_penalty(critic: Critic, x: Tensor, generated: Tensor, eps: Tensor) -> Tensor:
    """(‖∇D‖ - 1)² between x and G(z); in full precision, as :func:`train.losses.gradient_penalty`."""
    with torch.autocast(x.device.type, enabled=False):
        eps = full(eps).view(-1, 1, 1, 1)
        x_hat = (eps * full(x) + (1 - eps) * full(generated)).requires_grad_()
        (dx,) = torch.autograd.grad(critic(x_hat, None).sum(), x_hat, create_graph=True)
        return (dx.flatten(1).square().sum(1).sqrt() - 1).square().mean()


class IziScorer(Scorer):
    """Its feature error is the whole of izi_f."""

    def _feature_error(self, seen: Seen) -> Tensor:
        features = self._feature_difference(seen)
        n_pixels, n_features = seen.x[0].numel(), features[0, 0].numel()
        pixels = (seen.difference * seen.difference).sum(dim=(1, 2, 3)) * (1 / n_pixels)
        return pixels + (features * features).sum(dim=(0, 2, 3, 4)) * (KAPPA / n_features)


def _images(_encoder: Encoder, generator: Generator, _x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return z, generator(z)


METHOD = Method(
    source="f-AnoGAN (Schlegl et al., *f-AnoGAN: fast unsupervised anomaly detection with generative adversarial "
    "networks*, Medical Image Analysis 2019)",
    score="mean (x − G(E(x)))² + κ·mean (f_D(x) − f_D(G(E(x))))² with κ = 1",
    settings={"alpha": 0.0, "lambda": 1.0, "feature_layer": "block5", "locator": False},
    defaults={"warm_start": 0.5, "d_iter": 5, "betas_ge": (0.0, 0.9), "adam_eps": 1e-8},
    critic=ImageCritic,
    ge_player=IziPlayer,
    d_player=ImageCriticPlayer,
    fakes=_images,
    scorer=IziScorer,
    encoder_last=True,
)
