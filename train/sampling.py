"""Random training patches from whole images, drawn for a batch at once."""

import math

import torch
from torch import Tensor

from engines.engine import UInt8Array


class PatchSampler:
    """Draws patches with rotation and mirroring that never leave the image: no black corners.

    All images lie behind one another in one flat uint8 buffer, so that images of different sizes are sampled by
    index arithmetic, without a loop. The authors share one crop and angle in a batch (REFERENCE item 10); here
    every sample has its own.
    """

    def __init__(
        self,
        images: list[UInt8Array],
        patch: int,
        *,
        rotate: tuple[float, float] = (0.0, 0.0),
        flip: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take over the images.

        Args:
            images: uint8 (H, W, C) with C 1 or 3, each side at least ``patch``.
            patch: side of the patches.
            rotate: range of the rotation, degrees counter-clockwise. An image too small to hold a square rotated
                that far is sampled where its rotated square would leave it by repeating its border.
            flip: mirror left-right and up-down, each with probability one half.
            device: where the buffer lives and patches are made.
        """
        self.patch = patch
        self.rotate = (math.radians(rotate[0]), math.radians(rotate[1]))
        self.flip = flip
        self.device = torch.device(device)
        self.pixels = torch.cat([torch.from_numpy(i).reshape(-1, i.shape[2]) for i in images]).to(self.device)
        self.heights = torch.tensor([i.shape[0] for i in images], device=self.device)
        self.widths = torch.tensor([i.shape[1] for i in images], device=self.device)
        areas = self.heights * self.widths
        self.starts = areas.cumsum(0) - areas
        self.offsets = torch.arange(patch, dtype=torch.float32, device=self.device) - (patch - 1) / 2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` patches: float32 (n, 3, patch, patch) in [-1, 1], channels-last in memory.

        All random numbers come from ``generator``, which is of the sampler's device.
        """
        which = torch.randint(len(self.starts), (n,), generator=generator, device=self.device)
        where, angle, mirror = uniform(generator, 2, n), uniform(generator, n), uniform(generator, 2, n) < 0.5
        heights, widths, starts = self.heights[which], self.widths[which], self.starts[which]
        signs = torch.where(mirror, -1.0, 1.0) if self.flip else torch.ones(2, n, device=self.device)
        if self.rotate == (0.0, 0.0):
            return self._cut(heights, widths, starts, where, signs)
        theta = self.rotate[0] + (self.rotate[1] - self.rotate[0]) * angle
        return self._rotate(heights, widths, starts, where, signs, theta)

    def _cut(self, heights: Tensor, widths: Tensor, starts: Tensor, where: Tensor, signs: Tensor) -> Tensor:
        """Axis-parallel patches: whole pixels, nothing interpolated."""
        top = (where[0] * (heights - self.patch + 1)).to(torch.int64)
        left = (where[1] * (widths - self.patch + 1)).to(torch.int64)
        middle = (self.patch - 1) / 2
        rows = top[:, None] + (signs[0][:, None] * self.offsets + middle).to(torch.int64)
        columns = left[:, None] + (signs[1][:, None] * self.offsets + middle).to(torch.int64)
        index = (starts[:, None] + rows * widths[:, None])[:, :, None] + columns[:, None, :]
        return self._scaled(self.pixels[index])

    def _rotate(
        self, heights: Tensor, widths: Tensor, starts: Tensor, where: Tensor, signs: Tensor, theta: Tensor
    ) -> Tensor:
        """Rotated patches, bilinear. The centre is drawn where the rotated square lies inside the image."""
        cos, sin = theta.cos(), theta.sin()
        reach = (self.patch - 1) / 2 * (cos.abs() + sin.abs())
        last_row, last_column = (heights - 1).float(), (widths - 1).float()
        centre_y = torch.lerp(reach.minimum(last_row / 2), (last_row - reach).maximum(last_row / 2), where[0])
        centre_x = torch.lerp(reach.minimum(last_column / 2), (last_column - reach).maximum(last_column / 2), where[1])
        v = (signs[0][:, None] * self.offsets)[:, :, None]
        u = (signs[1][:, None] * self.offsets)[:, None, :]
        cos, sin = cos[:, None, None], sin[:, None, None]
        # Rows count downwards, hence the signs: a positive angle turns the patch's content counter-clockwise.
        y = (centre_y[:, None, None] + cos * v + sin * u).clamp_(min=0).minimum(last_row[:, None, None])
        x = (centre_x[:, None, None] + cos * u - sin * v).clamp_(min=0).minimum(last_column[:, None, None])
        y0, x0 = y.floor(), x.floor()
        dy, dx = (y - y0).unsqueeze(-1), (x - x0).unsqueeze(-1)
        y0, x0 = y0.to(torch.int64), x0.to(torch.int64)
        width = widths[:, None, None]
        down = (y0 < heights[:, None, None] - 1).to(torch.int64) * width
        right = (x0 < width - 1).to(torch.int64)
        index = starts[:, None, None] + y0 * width + x0
        upper = torch.lerp(self.pixels[index].float(), self.pixels[index + right].float(), dx)
        index = index + down
        lower = torch.lerp(self.pixels[index].float(), self.pixels[index + right].float(), dx)
        return self._scaled(torch.lerp(upper, lower, dy))

    @staticmethod
    def _scaled(patches: Tensor) -> Tensor:
        """(n, P, P, C) in 0..255 -> (n, 3, P, P) in [-1, 1]."""
        scaled = patches.float().mul_(1 / 127.5).sub_(1)
        return scaled.expand(*scaled.shape[:3], 3).contiguous().permute(0, 3, 1, 2)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers in [0, 1), on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)
