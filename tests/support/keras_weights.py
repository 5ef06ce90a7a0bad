"""From weights in the authors' Keras layout to the torch networks."""

import numpy as np
import torch

from train.networks import Critic, Encoder, Generator

Nets = tuple[Encoder, Generator, Critic]


def module_name(role: str, layer: str) -> str:
    if layer.startswith("block"):
        return ("blocks." if role == "G" else "trunk.blocks.") + layer.removeprefix("block")
    return layer.replace("latent", "latent.")


def to_torch(name: str, array: np.ndarray) -> torch.Tensor:
    """Kernel HWIO -> OIHW; dense (in, out) -> (out, in), flattened (h, w, c) -> (c, h, w)."""
    value = torch.from_numpy(np.asarray(array, dtype=np.float64))
    role, layer = name.split(".")[:2]
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    if layer == "dense0" and role == "G":
        value = value.unflatten(-1, (2, 2, -1)).movedim(-1, -3).flatten(-3)
    elif layer == "dense0" and value.ndim == 2:
        n_image = 4 * value.shape[1]
        image = value[:n_image].unflatten(0, (2, 2, -1)).permute(2, 0, 1, 3).flatten(0, 2)
        value = torch.cat([image, value[n_image:]])
    return value.t().contiguous()  # of a bias: itself


def parameter(nets: Nets, name: str) -> torch.nn.Parameter:
    """The torch parameter that holds Keras weight ``name``, e.g. ``E.block0.conv1.kernel``."""
    role, rest = name.split(".", 1)
    layer, kind = rest.rsplit(".", 1)
    net = dict(zip("EGD", nets, strict=True))[role]
    module = net.get_submodule(module_name(role, layer))
    return module.get_parameter("bias" if kind == "bias" else "weight")


@torch.no_grad()
def load(nets: Nets, weights: dict[str, np.ndarray], slope: float = 0.2) -> Nets:
    """Copy all weights in, as float64; every parameter of the networks must be there."""
    for net in nets:
        net.double()
        for module in net.modules():
            if isinstance(module, torch.nn.LeakyReLU):
                module.negative_slope = slope
    count = 0
    for name, array in weights.items():
        target = parameter(nets, name)
        target.copy_(to_torch(name, array))
        count += 1
    assert count == sum(1 for net in nets for _ in net.parameters())
    return nets
