"""Defects planted into good patches: what E and G learn to take out again and the locator to find.

No two are alike and none imitates a known defect: strokes and blobs of every size, thin curves, darker, brighter,
smoother, rougher, or made of material from elsewhere, always in proportion to the patch's own fine texture, so that
the same recipe suits any material. Uneven light is no defect, so patches are relit before anything is planted. After
CutPaste (Li et al. 2021), DRÆM (Zavrtanik et al. 2021).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from train.sampling import uniform

CLEAN = 0.4  # share of patches that stay as they are
LINES = 0.3  # share of defects that are thin curves
UNEVEN_GAIN = 0.15  # deviation of the relit patch's contrast from place to place, at most, of 1
UNEVEN_OFFSET = 0.3  # deviation of its brightness, at most, in the patch's contrasts
SHIFT = (1.2, 3.7)  # how much darker or brighter, in deviations of the patch's fine texture
LONGEST = 2.6  # log of the ratio of the longest to the shortest half axis, which is 1/32 of the patch
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


def relight(x: Tensor, random: torch.Generator) -> Tensor:
    """Patches, float32 (N, 3, P, P) in [-1, 1], as under light that falls unevenly: good material still."""
    n, size = len(x), x.shape[-1]
    strength = uniform(random, n, 1, 1, 1)
    gain, offset = (_field(n, size, 0.5, 3, random)[:, None] for _ in range(2))
    centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
    contrast = centred.std(dim=(1, 2, 3), keepdim=True)
    return (x + strength * (UNEVEN_GAIN * gain * centred + UNEVEN_OFFSET * offset * contrast)).clamp(-1, 1)


def plant(x: Tensor, random: torch.Generator) -> Planted:
    """Plant one or two defects into some of the patches ``x``, float32 (N, 3, P, P) in [-1, 1].

    All random numbers come from ``random``, which is of x's device.
    """
    mask = _shapes(len(x), x.shape[-1], random)[:, None]
    soft = _smooth(mask, 3)
    return Planted((x + (_fillings(x, random) - x) * soft).clamp(-1, 1), mask)


def _shapes(n: int, size: int, random: torch.Generator) -> Tensor:
    """Where the defects are, (n, size, size), 0 or 1."""
    mask = _blobs(n, size, random)
    mask = torch.maximum(mask, _blobs(n, size, random) * (uniform(random, n, 1, 1) < 0.3))
    mask = torch.where(uniform(random, n, 1, 1) < LINES, _lines(n, size, random), mask)
    return mask * (uniform(random, n, 1, 1) >= CLEAN)


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random, device=random.device)


def _pixels(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    side = torch.arange(float(size), device=device)
    y, x = torch.meshgrid(side, side, indexing="ij")
    return y, x


def _blobs(n: int, size: int, random: torch.Generator) -> Tensor:
    """Ellipses from dots to strokes, at any angle, with wavy rims."""
    y, x = _pixels(size, random.device)
    centre = uniform(random, n, 2, 1, 1) * size
    angle = uniform(random, n, 1, 1) * math.pi
    long = torch.exp(uniform(random, n, 1, 1) * LONGEST) * (size / 32)  # half axes, pixels
    short = (long / torch.exp(uniform(random, n, 1, 1) * 2.3)).clamp_min(1.2)
    wave = 0.18 * long * uniform(random, n, 1, 1)
    dy, dx = y - centre[:, 0], x - centre[:, 1]
    along = dy * angle.cos() + dx * angle.sin() + wave * _field(n, size, 2, 10, random)
    across = dx * angle.cos() - dy * angle.sin() + wave * _field(n, size, 2, 10, random)
    return ((along / long).square() + (across / short).square() < 1).float()


def _lines(n: int, size: int, random: torch.Generator) -> Tensor:
    """Thin curves: where a smooth random field crosses a level, within a disc."""
    field = _field(n, size, 2, 6, random)
    slope = torch.stack(torch.gradient(field, dim=(1, 2))).square().sum(0).sqrt().clamp_min(0.02)
    level = 0.5 * _normal(random, n, 1, 1)
    half_width = 0.6 + 1.6 * uniform(random, n, 1, 1)
    y, x = _pixels(size, random.device)
    centre = uniform(random, n, 2, 1, 1) * size
    radius = size * (0.125 + 0.375 * uniform(random, n, 1, 1))
    inside = (y - centre[:, 0]).square() + (x - centre[:, 1]).square() < radius.square()
    return (((field - level).abs() / slope < half_width) & inside).float()


def _field(n: int, size: int, least: float, most: float, random: torch.Generator) -> Tensor:
    """Smooth random fields with ``least`` to ``most`` bumps a side, (n, size, size), of about unit deviation."""
    nodes = math.ceil(most) + 3
    bumps = least * (uniform(random, n, 2, 1) * math.log(most / least)).exp()
    # Node 1 lies at the first pixel: bicubic interpolation needs one node beyond either end.
    at = 1 + bumps * torch.linspace(0, 1, size, device=random.device)
    y, x = ((2 / (nodes - 1)) * at - 1).unbind(1)
    places = torch.stack([x[:, None, :].expand(n, size, size), y[:, :, None].expand(n, size, size)], dim=-1)
    noise = _normal(random, n, 1, nodes, nodes)
    field = functional.grid_sample(noise, places, mode="bicubic", padding_mode="border", align_corners=True)[:, 0]
    return field / field.std(dim=(1, 2), keepdim=True).clamp_min(1e-3)


def _fillings(x: Tensor, random: torch.Generator) -> Tensor:
    """What each patch would look like if the defect covered all of it, (N, 3, P, P)."""
    n = len(x)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * uniform(random, n, 1, 1, 1)

    fine = x - _smooth(x, 9)
    texture = fine.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(_LEAST_TEXTURE)
    darker = between(0, 1) < 0.7  # most defects swallow light
    shift = texture * between(*SHIFT) * torch.where(darker, -1.0, 1.0)
    coloured = (x[:, :1] != x[:, 1:2]).any()
    shift = shift * (1 + 0.5 * _normal(random, n, 3, 1, 1) * coloured)
    elsewhere = torch.rot90(x.roll(1, 0), 1, (2, 3))
    elsewhere = elsewhere - elsewhere.mean(dim=(1, 2, 3), keepdim=True) + x.mean(dim=(1, 2, 3), keepdim=True)
    rough = _field(n, x.shape[-1], 5, 30, random)[:, None]
    kinds = torch.stack([
        x + shift,
        x - fine * between(0.5, 1.0) + 0.7 * shift,  # smoothed over
        x + texture * between(1.0, 2.5) * rough,
        elsewhere + 0.5 * shift,
    ])  # fmt: skip
    kind = torch.randint(0, len(kinds), (n,), generator=random, device=random.device)
    return kinds[kind, torch.arange(n, device=x.device)]


def _smooth(x: Tensor, side: int) -> Tensor:
    """Mean over squares of ``side`` pixels, mirrored at the border."""
    padded = functional.pad(x, (side // 2,) * 4, mode="reflect")
    return functional.avg_pool2d(functional.avg_pool2d(padded, (side, 1), 1), (1, side), 1)
