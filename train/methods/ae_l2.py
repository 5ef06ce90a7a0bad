"""AE-L2: the autoencoder with squared error of Bergmann et al. (VISAPP 2019; MVTec AD, CVPR 2019).

E and G minimise ‖x - G(E(x))‖₂², summed over pixels. They have no critic, so the whole run is one reconstruction phase.
Bergmann et al. look at the squared residual of each pixel; a bundle has the absolute one, which ranks pixels alike, and
a patch scores its sum, L_R.
"""

from torch import Tensor, nn

from train.methods.method import Method
from train.networks import Critic, Encoder, Generator


class SquaredErrorPlayer(nn.Module):
    """E and G minimise the squared error."""

    def __init__(self, encoder: Encoder, generator: Generator) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator

    def forward(
        self, x: Tensor, _z: Tensor | None, _alpha: float, _critic: Critic, _source: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch, scalars; x (N, 3, S, S) in [-1, 1]."""
        error = (x - self.generator(self.encoder(x))).square().flatten(1).sum(1).mean()
        return {"total": error, "squared_error": error}


METHOD = Method(
    source="autoencoder with squared error (Bergmann et al., *Improving unsupervised defect segmentation by applying "
    "structural similarity to autoencoders*, VISAPP 2019)",
    score="L_R = ‖x − G(E(x))‖₁",
    settings={"alpha": 1.0, "lambda": 0.0, "warm_start": 1.0, "locator": False},
    ge_player=SquaredErrorPlayer,
)
