import pytest
import torch

from train.planting import CLEAN, plant, relight


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def texture(n=64, size=64, colour=False):
    random = generator(9)
    fine = torch.randn(n, 3 if colour else 1, size, size, generator=random) * 0.1
    return (fine + torch.rand(n, 1, 1, 1, generator=random) - 0.5).clamp(-1, 1).expand(n, 3, size, size).contiguous()


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("colour", [False, True])
def test_only_what_the_mask_marks_has_changed(size, colour):
    x = texture(size=size, colour=colour)
    planted = plant(x, generator())
    assert planted.patches.shape == x.shape
    assert planted.mask.shape == (64, 1, size, size)
    assert set(planted.mask.unique().tolist()) == {0.0, 1.0}
    assert planted.patches.abs().max() <= 1
    near = torch.nn.functional.max_pool2d(planted.mask, 3, 1, 1).bool().expand_as(x)
    assert torch.equal(planted.patches[~near], x[~near])
    inside = planted.mask.bool().expand_as(x)
    assert (planted.patches - x)[inside].abs().mean() > 0.1  # at the least the fine texture's deviation


def test_grey_patches_stay_grey_and_some_stay_as_they_are():
    x = texture()
    planted = plant(x, generator())
    assert torch.equal(planted.patches[:, 0], planted.patches[:, 2])
    clean = planted.mask.flatten(1).sum(1) == 0
    assert CLEAN - 0.2 < clean.float().mean() < CLEAN + 0.25
    assert torch.equal(planted.patches[clean], x[clean])


def test_sizes_differ_widely_and_the_generator_decides_everything():
    x = texture()
    a, b, c = plant(x, generator(1)), plant(x, generator(1)), plant(x, generator(2))
    assert torch.equal(a.patches, b.patches)
    assert torch.equal(a.mask, b.mask)
    assert not torch.equal(a.mask, c.mask)
    areas = a.mask.flatten(1).sum(1)
    areas = areas[areas > 0]
    assert areas.max() > 10 * areas.min()
    assert areas.max() < 64 * 64 / 2


def test_flat_patches_get_visible_defects():
    planted = plant(torch.zeros(64, 3, 64, 64), generator())
    assert (planted.patches.abs().amax((1, 2, 3)) > 0.02).float().mean() > 0.3


def test_light_falls_unevenly_but_shows_no_new_detail():
    x = texture(n=8)
    lit = relight(x, generator())
    assert lit.shape == x.shape
    assert not torch.equal(lit, x)
    torch.testing.assert_close(lit[:, 0], lit[:, 1])
    step = (lit - x).diff(dim=-1).abs().amax(dim=(1, 2, 3))
    assert (step < 0.6 * x.diff(dim=-1).abs().amax(dim=(1, 2, 3))).all()
