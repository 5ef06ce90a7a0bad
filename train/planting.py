"""Defects planted into good patches: what E and G learn to take out again and the locator to find.

No two are alike and none imitates a known defect: strokes and blobs of every size, thin curves, darker, brighter,
smoother, rougher, or made of material from elsewhere, always in proportion to the patch's own fine texture, so that
the same recipe suits any material. After CutPaste (Li et al. 2021), DRÆM (Zavrtanik et al. 2021).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CLEAN = 0.4  # share of patches that stay as they are
LINES = 0.3  # share of defects that are thin curves
_LEAST_TEXTURE = 0.02  # of 2; below it, amplitudes are those of a patch with this much fine texture


@dataclass(frozen=True)
class Planted:
    """Good patches and what was done to them.

    Attributes:
        patches: float32 (N, 3, P, P) in [-1, 1].
        mask: float32 (N, 1, P, P), 1 where a defect is, else 0.
    """

    patches: Tensor
    mask: Tensor


def plant(x: Tensor, random: torch.Generator) -> Planted:
    """Plant one or two defects into some of the patches ``x``, float32 (N, 3, P, P) in [-1, 1].

    All random numbers come from ``random`` (on the CPU), so that a run can be resumed exactly.
    """
    shapes = _shapes(len(x), x.shape[-1], random)
    mask = shapes.to(x.device)[:, None]
    soft = _smooth(mask, 3)
    return Planted((x + (_fillings(x, random) - x) * soft).clamp(-1, 1), mask)


def _shapes(n: int, size: int, random: torch.Generator) -> Tensor:
    """Where the defects are, (n, size, size), 0 or 1."""
    mask = _blobs(n, size, random)
    second = torch.rand(n, 1, 1, generator=random) < 0.3
    mask = torch.maximum(mask, _blobs(n, size, random) * second)
    mask = torch.where(torch.rand(n, 1, 1, generator=random) < LINES, _lines(n, size, random), mask)
    return mask * (torch.rand(n, 1, 1, generator=random) >= CLEAN)


def _pixels(size: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    return y, x


def _blobs(n: int, size: int, random: torch.Generator) -> Tensor:
    """Ellipses from dots to strokes, at any angle, with wavy rims."""
    y, x = _pixels(size)
    centre = torch.rand(n, 2, 1, 1, generator=random) * size
    angle = torch.rand(n, 1, 1, generator=random) * math.pi
    long = torch.exp(torch.rand(n, 1, 1, generator=random) * 2.6) * (size / 32)  # half axes, pixels
    short = (long / torch.exp(torch.rand(n, 1, 1, generator=random) * 2.3)).clamp_min(1.2)
    wave = 0.18 * long * torch.rand(n, 1, 1, generator=random)
    dy, dx = y - centre[:, 0], x - centre[:, 1]
    along = dy * angle.cos() + dx * angle.sin() + wave * _field(n, size, 2, 10, random)
    across = dx * angle.cos() - dy * angle.sin() + wave * _field(n, size, 2, 10, random)
    return ((along / long).square() + (across / short).square() < 1).float()


def _lines(n: int, size: int, random: torch.Generator) -> Tensor:
    """Thin curves: where a smooth random field crosses a level, within a disc."""
    field = _field(n, size, 2, 6, random)
    slope = torch.stack(torch.gradient(field, dim=(1, 2))).square().sum(0).sqrt().clamp_min(0.02)
    level = 0.5 * torch.randn(n, 1, 1, generator=random)
    half_width = 0.6 + 1.6 * torch.rand(n, 1, 1, generator=random)
    y, x = _pixels(size)
    centre = torch.rand(n, 2, 1, 1, generator=random) * size
    radius = size * (0.125 + 0.375 * torch.rand(n, 1, 1, generator=random))
    inside = (y - centre[:, 0]).square() + (x - centre[:, 1]).square() < radius.square()
    return (((field - level).abs() / slope < half_width) & inside).float()


def _field(n: int, size: int, least: float, most: float, random: torch.Generator) -> Tensor:
    """Smooth random fields with ``least`` to ``most`` bumps a side, (n, size, size), of about unit deviation."""
    fields = []
    for bumps in (torch.rand(n, 2, generator=random) * math.log(most / least)).exp() * least:
        grid = [max(2, round(float(b))) + 3 for b in bumps]
        noise = torch.randn(1, 1, *grid, generator=random)
        fine = [math.ceil(size * g / (g - 3)) for g in grid]
        whole = functional.interpolate(noise, size=fine, mode="bicubic", align_corners=False)[0, 0]
        top, left = ((f - size) // 2 for f in fine)
        fields.append(whole[top : top + size, left : left + size])
    stacked = torch.stack(fields)
    return stacked / stacked.std(dim=(1, 2), keepdim=True).clamp_min(1e-3)


def _fillings(x: Tensor, random: torch.Generator) -> Tensor:
    """What each patch would look like if the defect covered all of it, (N, 3, P, P)."""
    n, device = len(x), x.device

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, 1, 1, 1, generator=random)).to(device)

    fine = x - _smooth(x, 9)
    texture = fine.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(_LEAST_TEXTURE)
    darker = uniform(0, 1) < 0.7  # most defects swallow light
    shift = texture * uniform(1.2, 3.7) * torch.where(darker, -1.0, 1.0)
    if not torch.equal(x[:, 0], x[:, 1]):
        shift = shift * (1 + 0.5 * torch.randn(n, 3, 1, 1, generator=random).to(device))
    elsewhere = torch.rot90(x.roll(1, 0), 1, (2, 3))
    elsewhere = elsewhere - elsewhere.mean(dim=(1, 2, 3), keepdim=True) + x.mean(dim=(1, 2, 3), keepdim=True)
    rough = _field(n, x.shape[-1], 5, 30, random).to(device)[:, None]
    kinds = torch.stack([
        x + shift,
        x - fine * uniform(0.5, 1.0) + 0.7 * shift,  # smoothed over
        x + texture * uniform(1.0, 2.5) * rough,
        elsewhere + 0.5 * shift,
    ])  # fmt: skip
    return kinds[torch.randint(0, len(kinds), (n,), generator=random).to(device), torch.arange(n, device=device)]


def _smooth(x: Tensor, side: int) -> Tensor:
    """Mean over squares of ``side`` pixels, mirrored at the border."""
    return functional.avg_pool2d(functional.pad(x, (side // 2,) * 4, mode="reflect"), side, 1)
