"""The losses of the paper, eq. 4-6 and 10-13, with the gradient penalty as the authors' code pairs it.

L1 terms are sums over pixels or latent entries, then means over the batch (REFERENCE item 3); hence the small alpha.
The two players are modules, so that Lightning Fabric can wrap each for several GPUs: one forward, one backward a step.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.networks import Critic, Encoder, Generator, Locator


def full(t: Tensor) -> Tensor:
    """At least float32: under Fabric's bf16-mixed even a player's inputs come in bfloat16."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def l1(a: Tensor, b: Tensor) -> Tensor:
    """‖a - b‖₁ per sample: (N, ...) -> (N,)."""
    return (a - b).abs().flatten(1).sum(1)


class GeneratorEncoderPlayer(nn.Module):
    """E and G against a fixed D: L* = (1 - α)·L_EG + α·L_C (eq. 13)."""

    def __init__(self, encoder: Encoder, generator: Generator) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator

    def forward(
        self, x: Tensor, z: Tensor | None, alpha: float, critic: Critic, source: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch: ``total`` to minimise and its parts, scalars; in the warm start also the reconstruction.

        Args:
            x: (N, 3, S, S) real images in [-1, 1].
            source: in the warm start, what x is to be rebuilt from: x with planted defects. None: x itself.
            z: (N, latent_size) prior latents. None is the warm start: reconstruct images, eq. 11 and nothing else.
            alpha: weight of the consistency loss; 1 is the double autoencoder, 0 is BiGAN (EGBAD).
            critic: D, whose weights the caller has frozen; not called when alpha is 1.
        """
        if z is None:
            reconstruction = self.generator(self.encoder(x if source is None else source))
            warm = l1(x, reconstruction).mean()
            return {"total": warm, "image_consistency": warm, "reconstruction": reconstruction.detach()}
        encoded, generated = self.encoder(x), self.generator(z)
        losses: dict[str, Tensor] = {}
        total = x.new_zeros(())
        if alpha < 1.0:
            losses["adversarial"] = (critic(x, encoded) - critic(generated, z)).mean()  # eq. 5
            total = total + (1.0 - alpha) * losses["adversarial"]
        if alpha > 0.0:
            losses["image_consistency"] = l1(x, self.generator(encoded)).mean()  # eq. 11
            losses["latent_consistency"] = l1(z, self.encoder(generated)).mean()  # eq. 12
            total = total + alpha * (losses["image_consistency"] + losses["latent_consistency"])  # eq. 10
        return {"total": total, **losses}


class CriticPlayer(nn.Module):
    """D against fixed E and G: L_D (eq. 6) plus the weighted gradient penalty."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(
        self, x: Tensor, encoded: Tensor, generated: Tensor, z: Tensor, eps: Tensor, gp_weight: float
    ) -> dict[str, Tensor]:
        """Losses of one batch: ``total`` to minimise and its parts, scalars.

        Args:
            x: (N, 3, S, S) real images.
            encoded: (N, latent_size) E(x), detached.
            generated: (N, 3, S, S) G(z), detached.
            z: (N, latent_size) prior latents.
            eps: (N, 1) uniform in [0, 1], one per sample.
            gp_weight: weight of the penalty (10 in the authors' code).
        """
        real, fake = self.critic(x, encoded).mean(), self.critic(generated, z).mean()
        penalty = gradient_penalty(self.critic, x, encoded, generated, z, eps)
        return {
            "total": fake - real + gp_weight * penalty,
            "wasserstein": real - fake,
            "gradient_penalty": penalty,
        }


class LocatorPlayer(nn.Module):
    """L learns to find the planted defects; E and G take no part in its loss."""

    def __init__(self, locator: Locator) -> None:
        super().__init__()
        self.locator = locator

    def forward(self, planted: Tensor, reconstruction: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Losses of one batch: ``total`` to minimise and its part, scalars.

        Args:
            planted: (N, 3, S, S) images with planted defects.
            reconstruction: (N, 3, S, S) what E and G make of them, detached.
            mask: (N, 1, S, S) where the defects are.
        """
        location = functional.binary_cross_entropy_with_logits(
            self.locator(planted, reconstruction), functional.avg_pool2d(mask, 2)
        )
        return {"total": location, "location": location}


def gradient_penalty(critic: Critic, x: Tensor, encoded: Tensor, generated: Tensor, z: Tensor, eps: Tensor) -> Tensor:
    """Two-sided penalty (‖∇D‖ - 1)² of WGAN-GP on images and latents jointly.

    The authors pair x with the *prior* z and G(z) with E(x), one eps for both (REFERENCE item 4); so do we. Computed in
    float32 whatever autocast says: its double backward underflows in half precision.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, encoded, generated, z = (full(t) for t in (x, encoded, generated, z))
        eps_image = eps.view(-1, 1, 1, 1)
        x_hat = (eps_image * x + (1 - eps_image) * generated).requires_grad_()
        z_hat = (eps * z + (1 - eps) * encoded).requires_grad_()
        dx, dz = torch.autograd.grad(critic(x_hat, z_hat).sum(), (x_hat, z_hat), create_graph=True)
        norm = (dx.flatten(1).square().sum(1) + dz.square().sum(1)).sqrt()
        return (norm - 1).square().mean()
