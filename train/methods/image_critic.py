"""D(x) without the latent branch, for methods whose critic sees images only."""

from torch import Tensor, nn

from train.architecture import Architecture
from train.networks import CRITIC_LATENT_FEATURES, Critic, glorot_


class ImageCritic(Critic):
    """D: scores images; the latent that other critics see beside them is ignored."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.latent = nn.ModuleList()
        n_out, n_joint = self.dense0.weight.shape
        self.dense0 = nn.Linear(n_joint - CRITIC_LATENT_FEATURES, n_out, bias=arch.bias)
        glorot_(self.dense0)

    def forward(self, x: Tensor, _z: Tensor | None = None) -> Tensor:
        """(N, 3, S, S) -> (N,)."""
        return self.dense1(self.act(self.dense0(self.trunk(x)))).squeeze(1)
