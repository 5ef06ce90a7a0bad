"""E, G and D: the residual networks of the paper (section V.B, fig. 3) as the authors' code builds them.

``C`` is the width. All images are float (N, 3, H, W) in [-1, 1]; latents are float (N, latent_size).
"""

from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from train.architecture import FEATURE_LAYERS, LINEAR_FEATURE_LAYER, WIDTHS, Architecture

LEAKY_SLOPE = 0.2
CRITIC_LATENT_FEATURES = 512


class Block(nn.Module):
    """``s = skip(x); y = lrelu(conv1(x)); y = lrelu(conv2(y)); lrelu(conv3(y) + s)``, spatial size kept."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool) -> None:
        super().__init__()
        self.skip = nn.Conv2d(n_in, n_out, 1, bias=bias)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=bias)
        self.conv3 = nn.Conv2d(n_out, n_out, 1)
        self.act = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H, W)."""
        y = self.act(self.conv1(x))
        y = self.act(self.conv2(y))
        return self.act(self.conv3(y) + self.skip(x))


class Fold(nn.Module):
    """``lrelu(conv1(x))`` at half the size: in the place of a block at full size and the pooling after it."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, bias=bias)
        self.act = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H/2, W/2)."""
        return self.act(self.conv1(x))


class Trunk(nn.Module):
    """The convolutional half that E and D share: six blocks, 2 x 2 average pooling after all but the last.

    Folded, a :class:`Fold` is in the place of the first.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        filters = [arch.width * w for w in WIDTHS]
        if arch.folded:
            filters[0] = filters[1]
            first: nn.Module = Fold(3, filters[0], bias=arch.bias)
        else:
            first = Block(3, filters[0], bias=arch.bias)
        later = (Block(n_in, n_out, bias=arch.bias) for n_in, n_out in pairwise(filters))
        self.blocks = nn.ModuleList([first, *later])
        self.pool = nn.AvgPool2d(2)
        self.folded = arch.folded

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, 16·C·(S/32)²), flattened channel first."""
        return self.features(x, len(self.blocks)).flatten(1)

    def features(self, x: Tensor, depth: int) -> Tensor:
        """What the first ``depth`` blocks make of (N, 3, S, S)."""
        for i, block in enumerate(self.blocks[:depth]):
            whole = i == 0 or (i == 1 and self.folded)
            x = block(x if whole else self.pool(x))
        return x


def _flat_size(arch: Architecture) -> int:
    return 16 * arch.width * (arch.image_size // 32) ** 2


class Encoder(nn.Module):
    """E: image -> latent."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.trunk = Trunk(arch)
        self.dense0 = nn.Linear(_flat_size(arch), 16 * arch.width, bias=arch.bias)
        self.act = nn.LeakyReLU(LEAKY_SLOPE)
        self.dense1 = nn.Linear(16 * arch.width, arch.latent_size)
        glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) in [-1, 1] -> (N, latent_size)."""
        return self.dense1(self.act(self.dense0(self.trunk(x))))


class Generator(nn.Module):
    """G: latent -> image, in [-1, 1] by tanh. Objects double once more, before the first block.

    Folded, the last block works at half the size, and gives the four pixels of each place as channels.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.image_size = arch.image_size
        self.seed_shape = (16 * arch.width, 2, 2)
        self.dense0 = nn.Linear(arch.latent_size, 64 * arch.width, bias=arch.bias)
        filters = [16 * arch.width, *(arch.width * w for w in reversed(WIDTHS))]
        if arch.folded:
            filters[-1] = filters[-2]
        self.blocks = nn.ModuleList(Block(n_in, n_out, bias=arch.bias) for n_in, n_out in pairwise(filters))
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.upsample_first = arch.category == "object"
        self.folded = arch.folded
        self.out = nn.Conv2d(filters[-1], 12 if arch.folded else 3, 1)
        self.unfold = nn.PixelShuffle(2) if arch.folded else nn.Identity()
        glorot_(self)

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent_size) -> (N, 3, S, S)."""
        x = self.dense0(z).unflatten(1, self.seed_shape)
        for i, block in enumerate(self.blocks):
            last_of_folded = self.folded and i == len(self.blocks) - 1
            if (i > 0 or self.upsample_first) and not last_of_folded:
                x = self.upsample(x)
            x = block(x)
        return torch.tanh(self.unfold(self.out(x)))


class Critic(nn.Module):
    """D: scores pairs (image, latent); high for real images with their encodings (Wasserstein critic, eq. 4)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.act = nn.LeakyReLU(LEAKY_SLOPE)
        sizes = [arch.latent_size, *[CRITIC_LATENT_FEATURES] * 3]
        self.latent = nn.ModuleList(nn.Linear(n_in, n_out, bias=arch.bias) for n_in, n_out in pairwise(sizes))
        self.trunk = Trunk(arch)
        self.dense0 = nn.Linear(_flat_size(arch) + CRITIC_LATENT_FEATURES, 16 * arch.width, bias=arch.bias)
        self.dense1 = nn.Linear(16 * arch.width, 1)
        glorot_(self)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """(N, 3, S, S), (N, latent_size) -> (N,)."""
        for dense in self.latent:
            z = self.act(dense(z))
        joint = torch.cat([self.trunk(x), z], dim=1)
        return self.dense1(self.act(self.dense0(joint))).squeeze(1)

    def features(self, x: Tensor, layer: str) -> Tensor:
        """f_D of eq. 9 at ``layer``: ``block0.conv1`` (linear, the authors' choice) or ``block1`` ... ``block5``.

        No layer here depends on z: latents join after the trunk (REFERENCE item 1).

        Returns:
            float (N, channels, h, w).
        """
        if layer == LINEAR_FEATURE_LAYER:
            return self.trunk.blocks[0].get_submodule("conv1")(x)
        return self.trunk.features(x, FEATURE_LAYERS.index(layer))


LOCATOR_WIDTHS = (2, 2, 4, 4, 6)  # filters of its levels, in units of the width


class Locator(nn.Module):
    """L: where in a patch something does not belong, from the patch and what E and G make of it.

    A small U-Net at half the patch's size. It is trained on good patches into which defects were planted
    (``train.planting``), so it learns which departures from G(E(x)) matter and which are the material's own.

    Both images are brought to the patch's own mean and contrast first: light changes, defects do not follow it.
    """

    CONTRAST_FLOOR = 0.02  # of 2; a patch without any contrast is not blown up to noise

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        sizes = [arch.width * w for w in LOCATOR_WIDTHS]
        self.fold = Fold(6, sizes[0], bias=True)
        self.down = nn.ModuleList(Block(n_in, n_out, bias=True) for n_in, n_out in pairwise(sizes))
        # Deeper levels are narrowed before they are enlarged and added, which costs a quarter of what it would after.
        levels = list(reversed(sizes[1:]))
        self.narrow = nn.ModuleList(nn.Conv2d(n_in, n_out, 1) for n_in, n_out in pairwise(levels))
        self.up = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1) for n in levels[1:])
        self.act = nn.LeakyReLU(LEAKY_SLOPE)
        self.out = nn.Conv2d(sizes[1], 1, 1)
        self.pool = nn.AvgPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        glorot_(self)

    def forward(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """(N, 3, S, S) twice, in [-1, 1] -> (N, 1, S/2, S/2): log-odds that a defect is there."""
        y = self.fold(self.normalised(x, reconstruction).to(self.out.weight.dtype))
        levels = []
        for i, block in enumerate(self.down):
            y = block(self.pool(y) if i else y)
            levels.append(y)
        for narrow, up, level in zip(self.narrow, self.up, reversed(levels[:-1]), strict=True):
            y = self.act(up(self.upsample(narrow(y)) + level))
        return self.out(y)

    def normalised(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """Both images, less the patch's mean, in units of its standard deviation: (N, 6, S, S)."""
        pixels = x[0].numel()
        mean = x.sum(dim=(1, 2, 3), keepdim=True) * (1 / pixels)
        centred = x - mean
        contrast = ((centred * centred).sum(dim=(1, 2, 3), keepdim=True) * (1 / pixels)).sqrt()
        return torch.cat([centred, reconstruction - mean], dim=1) / (contrast + self.CONTRAST_FLOOR)


M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Lay the weights out channels-last, which makes convolutions on CPUs and tensor cores faster."""
    nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)
    return module


def glorot_(module: nn.Module) -> None:
    """Keras's default initialiser, which the authors' code uses: Glorot uniform kernels, zero biases."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
