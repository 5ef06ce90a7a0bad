"""GANomaly: an autoencoder and a second encoder that encodes again (Akcay et al., ACCV 2018).

E, G and a second encoder E2 minimise (eq. 1-4, weights of the authors' code)

    1·mean (f(x) - f(G(E(x))))² + 50·mean |x - G(E(x))| + 1·mean (E(x) - E2(G(E(x))))²

with f the last features of D, which sees images only and tells x from G(E(x)) by binary cross entropy. As in the
authors' code, the norms that the paper writes as ‖·‖₂ are mean squares. The score is ‖E(x) - E2(G(E(x)))‖₁ (eq. 5).

Not done: starting D anew when its loss falls below 1e-5, as the authors' code does; batch normalisation, as our
networks have none. The learning rate is ours.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from train.architecture import Architecture
from train.methods.image_critic import ImageCritic
from train.methods.method import Method
from train.networks import Critic, Encoder, Generator
from train.scorer import Scorer, Seen

ADVERSARIAL_WEIGHT, CONTEXT_WEIGHT, ENCODING_WEIGHT = 1.0, 50.0, 1.0


class EncoderPair(Encoder):
    """E, and beside it E2, which encodes the reconstruction."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.second = Encoder(arch)


class GanomalyPlayer(nn.Module):
    """E, G and E2 against a fixed D."""

    def __init__(self, encoder: Encoder, generator: Generator) -> None:
        super().__init__()
        self.encoder = cast("EncoderPair", encoder)
        self.generator = generator

    def forward(
        self, x: Tensor, _z: Tensor | None, _alpha: float, critic: Critic, _source: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch, scalars; x (N, 3, S, S) in [-1, 1]."""
        encoded = self.encoder(x)
        generated = self.generator(encoded)
        matching = functional.mse_loss(critic.trunk(generated), critic.trunk(x))
        context = functional.l1_loss(generated, x)
        encoding = functional.mse_loss(self.encoder.second(generated), encoded)
        total = ADVERSARIAL_WEIGHT * matching + CONTEXT_WEIGHT * context + ENCODING_WEIGHT * encoding
        return {"total": total, "feature_matching": matching, "context": context, "encoding": encoding}


class RealFakePlayer(nn.Module):
    """D tells images from reconstructions."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(
        self, x: Tensor, _encoded: Tensor, generated: Tensor, z: Tensor, _eps: Tensor, _gp_weight: float
    ) -> dict[str, Tensor]:
        """Losses of one batch, scalars; x and generated (N, 3, S, S), generated is G(E(x)), detached."""
        real, fake = self.critic(x, z), self.critic(generated, z)
        entropy = (functional.softplus(-real) + functional.softplus(fake)).mean() / 2  # of the log-odds
        return {"total": entropy, "real_fake": entropy}


class GanomalyScorer(Scorer):
    """Its feature error is the distance of the two encoders' latents."""

    def _feature_error(self, seen: Seen) -> Tensor:
        again = cast("EncoderPair", self.encoder).second(seen.reconstruction.to(seen.encoded.dtype))
        exact = seen.reconstruction.dtype
        return (seen.encoded.to(exact) - again.to(exact)).abs().sum(dim=1)


def _reconstructions(encoder: Encoder, generator: Generator, x: Tensor, _z: Tensor) -> tuple[Tensor, Tensor]:
    encoded = encoder(x)
    return encoded, generator(encoded)


METHOD = Method(
    source="GANomaly (Akcay et al., *GANomaly: semi-supervised anomaly detection via adversarial training*, ACCV 2018)",
    score="‖E(x) − E₂(G(E(x)))‖₁",
    settings={"alpha": 0.0, "lambda": 1.0, "warm_start": 0.0, "locator": False},
    defaults={"betas_ge": (0.5, 0.999), "betas_d": (0.5, 0.999), "adam_eps": 1e-8},
    encoder=EncoderPair,
    critic=ImageCritic,
    ge_player=GanomalyPlayer,
    d_player=RealFakePlayer,
    fakes=_reconstructions,
    scorer=GanomalyScorer,
)
