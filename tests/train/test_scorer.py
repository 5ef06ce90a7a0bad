"""The scorer and its graph against eq. 7-9 written out, on random weights of width 3."""

import functools

import numpy as np
import onnx
import pytest
import torch

from train.graph import IR_VERSION, OPERATORS, OPSET, export_graph, open_reconstructor
from train.networks import FEATURE_LAYERS, Architecture, Critic, Encoder, Generator
from train.scorer import Scorer

EXPORTED = [("block0.conv1", "texture"), ("block2", "object")]  # an export takes seconds
OUTPUTS = ["reconstruction_error", "feature_error", "residual"]


torch.set_num_threads(1)  # these networks are too small for more, and threads that wait for a core cost seconds


@functools.cache
def make_scorer(layer: str, category: str) -> Scorer:
    torch.manual_seed(7)
    arch = Architecture(category, width=3)
    scorer = Scorer(Encoder(arch), Generator(arch), Critic(arch), layer)
    for name, parameter in scorer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return scorer.double().eval()


@functools.cache
def graph(layer: str, category: str) -> bytes:
    return export_graph(make_scorer(layer, category), image_size(category))


def image_size(category: str) -> int:
    return Architecture(category).image_size


def some_patches(n: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def run_torch(scorer: Scorer, patches: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [t.numpy() for t in scorer(torch.from_numpy(patches))]


def run_graph(data: bytes, patches: np.ndarray) -> list[np.ndarray]:
    import onnxruntime  # here, when engines has been imported: it turns the telemetry off

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(OUTPUTS, {"patches": patches})


@pytest.mark.parametrize("layer", FEATURE_LAYERS)
def test_scores_follow_equations_8_and_9(layer: str) -> None:
    scorer = make_scorer(layer, "texture")
    patches = some_patches(3)

    with torch.no_grad():
        x = torch.from_numpy(patches.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1)
        y = scorer.generator(scorer.encoder(x))
        reconstruction_error = (x - y).abs().flatten(1).sum(1)
        features = scorer.critic.features(x, layer) - scorer.critic.features(y, layer)
    found = run_torch(scorer, patches)

    np.testing.assert_allclose(found[0], reconstruction_error, rtol=1e-12)
    np.testing.assert_allclose(found[1], features.abs().flatten(1).sum(1), rtol=1e-10)
    np.testing.assert_allclose(found[2], (x - y).abs().mean(1), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found[3], y, atol=1e-12)


@pytest.mark.parametrize(("layer", "category"), EXPORTED)
@pytest.mark.parametrize("n", [1, 5])
def test_graph_equals_torch_in_float64_for_any_number_of_patches(layer: str, category: str, n: int) -> None:
    patches = some_patches(n, image_size(category))

    expected = run_torch(make_scorer(layer, category), patches)
    found = run_graph(graph(layer, category), patches)

    for name, a, b in zip(OUTPUTS, found, expected, strict=False):
        assert a.dtype == np.float32, name
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(("layer", "category"), EXPORTED)
def test_graph_is_plain_enough_for_every_engine(layer: str, category: str) -> None:
    model = onnx.load_from_string(graph(layer, category))
    initializers = {i.name for i in model.graph.initializer}
    readers = [node for node in model.graph.node if "patches" in node.input]

    assert [(e.domain, e.version) for e in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert {n.op_type for n in model.graph.node} <= OPERATORS
    assert [n.op_type for n in readers] == ["Cast"]
    assert [o.name for o in model.graph.output] == OUTPUTS
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Resize":
            assert attributes["mode"] == b"linear"
            assert attributes["coordinate_transformation_mode"] == b"half_pixel"
            assert not attributes.get("antialias")
        if node.op_type in {"ReduceSum", "Reshape", "Slice", "Resize"}:  # axes, shapes and scales are constants
            assert set(filter(None, node.input[1:])) <= initializers, node.op_type


def test_graph_holds_each_weight_once_and_nothing_of_the_critic_beyond_its_feature_layer() -> None:
    scorer = make_scorer("block0.conv1", "texture")
    used = [*scorer.encoder.parameters(), *scorer.generator.parameters(), scorer.critic.trunk.blocks[0].conv1.weight]

    size = len(graph("block0.conv1", "texture"))

    assert size < sum(p.numel() for p in used) * 4 + 32 * 1024
    assert b"/train/" not in graph("block0.conv1", "texture")  # no stack traces of the exporting machine


def test_reconstruction_can_be_had_from_the_graph() -> None:
    patches = some_patches(2)
    expected = run_torch(make_scorer("block0.conv1", "texture"), patches)[3]

    reconstruct = open_reconstructor(graph("block0.conv1", "texture"))
    assert reconstruct is not None
    found = reconstruct(patches)

    np.testing.assert_allclose(found, (expected.transpose(0, 2, 3, 1) + 1) * 127.5, atol=1e-2)


def test_unknown_feature_layer_is_refused() -> None:
    known = make_scorer("block2", "texture")

    with pytest.raises(ValueError, match=r"'block9' is none of block0\.conv1"):
        Scorer(known.encoder, known.generator, known.critic, "block9")
