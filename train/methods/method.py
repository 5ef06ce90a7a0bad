"""In what a method may differ from CBiGAN."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from train.architecture import Architecture
from train.losses import CriticPlayer, GeneratorEncoderPlayer
from train.networks import Critic, Encoder, Generator
from train.scorer import Scorer


def prior_fakes(encoder: Encoder, generator: Generator, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) and G(z): the pairs (x, E(x)) and (G(z), z) of eq. 4."""
    return encoder(x), generator(z)


@dataclass(frozen=True)
class Method:
    """A method as the trainer, the checkpoint and the export need it. What is not given is CBiGAN's.

    Attributes:
        source: its name and paper, for model cards.
        score: what a patch scores, for model cards.
        settings: settings that make it this method; no option may change them. Names as in ``FitConfig``'s JSON.
        defaults: settings that go before those of a preset, and that options override.
        encoder: makes E; a subclass may hold more networks, which are trained, averaged and saved with it.
        critic: makes D.
        ge_player: the losses of E and G, with the forward of :class:`~train.losses.GeneratorEncoderPlayer`.
        d_player: the losses of D, with the forward of :class:`~train.losses.CriticPlayer`.
        fakes: from E, G, x and z: the ``encoded`` and ``generated`` that D is trained on.
        scorer: what the bundle's graph computes.
        encoder_last: E is trained at the end, against fixed G and D, and takes no part before.
    """

    source: str
    score: str
    settings: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    encoder: Callable[[Architecture], Encoder] = Encoder
    critic: Callable[[Architecture], Critic] = Critic
    ge_player: Callable[[Encoder, Generator], nn.Module] = GeneratorEncoderPlayer
    d_player: Callable[[Critic], nn.Module] = CriticPlayer
    fakes: Callable[[Encoder, Generator, Tensor, Tensor], tuple[Tensor, Tensor]] = prior_fakes
    scorer: type[Scorer] = Scorer
    encoder_last: bool = False
