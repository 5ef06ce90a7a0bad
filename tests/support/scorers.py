"""Scorers with random weights, and their graphs."""

import functools

import numpy as np
import torch

from train.architecture import Architecture
from train.graph import export_graph
from train.networks import Critic, Encoder, Generator, Locator
from train.quantization import quantize_graph
from train.scorer import MapScales, Scorer

torch.set_num_threads(1)  # these networks are too small for more, and threads that wait for a core cost seconds

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def image_size(category: str) -> int:
    return Architecture(category).image_size


@functools.cache
def make_scorer(layer: str, category: str, width: int = 3, *, locator: bool = False, folded: bool = False) -> Scorer:
    """In float64, so that its outputs can serve as the truth; every bias is used."""
    torch.manual_seed(7)
    arch = Architecture(category, width=width, folded=folded)
    networks = Encoder(arch), Generator(arch), Critic(arch)
    scales = MapScales((0.1, 0.9), (-4.0, 2.0))
    scorer = Scorer(*networks, layer, Locator(arch), scales) if locator else Scorer(*networks, layer)
    for name, parameter in scorer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return scorer.double().eval()


@functools.lru_cache(maxsize=4)  # wide ones are large
def make_graph(
    layer: str,
    category: str,
    width: int = 3,
    precision: str = "fp32",
    *,
    locator: bool = False,
    folded: bool = False,
) -> bytes:
    size = image_size(category)
    if precision == "int8":
        plain = make_graph(layer, category, width, locator=locator, folded=folded)
        return quantize_graph(plain, some_patches(8, size))
    return export_graph(make_scorer(layer, category, width, locator=locator, folded=folded), size, DTYPES[precision])


def some_patches(n: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def run_torch(scorer: Scorer, patches: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [t.numpy() for t in scorer(torch.from_numpy(patches))]


def run_graph(graph: bytes, patches: np.ndarray) -> list[np.ndarray]:
    """All outputs, by ONNX Runtime."""
    import onnxruntime  # here, when engines has been imported: it turns the telemetry off

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"patches": patches})
