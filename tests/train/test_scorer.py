"""The scorer and its graph against eq. 7-9 written out, on random weights of width 3."""

import numpy as np
import onnx
import pytest
import torch

from tests.support.scorers import image_size, make_graph, make_scorer, run_graph, run_torch, some_patches
from train.architecture import FEATURE_LAYERS
from train.graph import RECONSTRUCTION, open_reconstructor
from train.graph_rules import IR_VERSION, OPSET
from train.scorer import Scorer

EXPORTED = [("block0.conv1", "texture"), ("block2", "object")]  # an export takes seconds
OUTPUTS = ["reconstruction_error", "feature_error", "residual"]


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("layer", FEATURE_LAYERS)
def test_scores_follow_equations_8_and_9(layer: str, folded: bool) -> None:
    scorer = make_scorer(layer, "texture", folded=folded)
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
    found = run_graph(make_graph(layer, category), patches)

    for name, a, b in zip(OUTPUTS, found, expected, strict=False):
        assert a.dtype == np.float32, name
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(("layer", "category"), EXPORTED)
def test_graph_is_what_every_engine_expects(layer: str, category: str) -> None:
    model = onnx.load_from_string(make_graph(layer, category))
    readers = [node for node in model.graph.node if "patches" in node.input]

    assert [(e.domain, e.version) for e in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert [n.op_type for n in readers] == ["Cast"]
    assert [o.name for o in model.graph.output] == OUTPUTS
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert any(RECONSTRUCTION in node.output for node in model.graph.node)


@pytest.mark.parametrize(("layer", "category"), EXPORTED)
def test_fp16_graph_computes_sums_in_float32(layer: str, category: str) -> None:
    patches = some_patches(5, image_size(category))
    patches[0] = np.where(patches[0] < 128, 0, 255)  # the largest sums there are

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(make_graph(layer, category, precision="fp16")))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types.update({value.name: value.type.tensor_type.elem_type for value in model.graph.output})
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "AveragePool", "Resize", "LeakyRelu", "Add"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT16, node.name
        if node.op_type in ("ReduceSum", "Abs", "Sub"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name

    expected = run_torch(make_scorer(layer, category), patches)
    found = run_graph(make_graph(layer, category, precision="fp16"), patches)
    for name, a, b in zip(OUTPUTS, found, expected, strict=False):
        assert a.dtype == np.float32, name
        assert np.abs(a - b).max() < 2e-3 * np.abs(b).max(), name


def test_fp16_graph_takes_half_the_bytes() -> None:
    assert len(make_graph("block0.conv1", "texture", precision="fp16")) < 0.6 * len(
        make_graph("block0.conv1", "texture")
    )


def test_graph_holds_each_weight_once_and_nothing_of_the_critic_beyond_its_feature_layer() -> None:
    scorer = make_scorer("block0.conv1", "texture")
    used = [*scorer.encoder.parameters(), *scorer.generator.parameters(), scorer.critic.trunk.blocks[0].conv1.weight]

    size = len(make_graph("block0.conv1", "texture"))

    assert size < sum(p.numel() for p in used) * 4 + 32 * 1024
    assert b"/train/" not in make_graph("block0.conv1", "texture")  # no stack traces of the exporting machine


def test_reconstruction_can_be_had_from_the_graph() -> None:
    patches = some_patches(2)
    expected = run_torch(make_scorer("block0.conv1", "texture"), patches)[3]

    reconstruct = open_reconstructor(make_graph("block0.conv1", "texture"))
    assert reconstruct is not None
    found = reconstruct(patches)

    np.testing.assert_allclose(found, (expected.transpose(0, 2, 3, 1) + 1) * 127.5, atol=1e-2)


def test_unknown_feature_layer_is_refused() -> None:
    known = make_scorer("block2", "texture")

    with pytest.raises(ValueError, match=r"'block9' is none of block0\.conv1"):
        Scorer(known.encoder, known.generator, known.critic, "block9")


@pytest.mark.parametrize(("category", "precision", "error"), [("texture", "fp32", 1e-5), ("object", "fp16", 5e-3)])
def test_the_anomaly_map_adds_both_halves_in_their_scales(category: str, precision: str, error: float) -> None:
    scorer = make_scorer("block0.conv1", category, locator=True)
    patches = some_patches(3, image_size(category))
    x = torch.from_numpy(patches.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1)
    with torch.no_grad():
        y = scorer.generator(scorer.encoder(x))
        log_odds = torch.nn.functional.interpolate(scorer.locator(x, y), scale_factor=2, mode="bilinear")[:, 0]
    expected = 0.25 * ((x - y).abs().mean(1) - 0.1) / 0.8 + (log_odds + 4) / 6

    found = run_torch(scorer, patches)
    np.testing.assert_allclose(found[3], expected, atol=1e-9)
    np.testing.assert_allclose(found[4], y, atol=1e-12)
    by_graph = run_graph(make_graph("block0.conv1", category, precision=precision, locator=True), patches)
    assert len(by_graph) == 4
    assert np.abs(by_graph[3] - expected.numpy()).max() < error * np.abs(expected.numpy()).max()


@pytest.mark.parametrize(("layer", "category"), EXPORTED)
@pytest.mark.parametrize("locator", [False, True])
def test_graph_of_folded_networks_equals_torch_in_float64(layer: str, category: str, locator: bool) -> None:
    patches = some_patches(3, image_size(category))

    expected = run_torch(make_scorer(layer, category, locator=locator, folded=True), patches)
    found = run_graph(make_graph(layer, category, locator=locator, folded=True), patches)

    for a, b in zip(found, expected, strict=False):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_folding_puts_four_pixels_of_a_place_side_by_side() -> None:
    generator = make_scorer("block0.conv1", "texture", folded=True).generator
    z = torch.randn(2, 64, dtype=torch.float64)
    with torch.no_grad():
        generator.out.weight.zero_()
        generator.out.bias.copy_(torch.arange(12.0) / 10)
        image = torch.atanh(generator(z))

    colour, row, column = torch.meshgrid(*(torch.arange(n) for n in (3, 64, 64)), indexing="ij")
    torch.testing.assert_close(image[1], (4 * colour + 2 * (row % 2) + column % 2).double() / 10)


def test_the_locator_does_not_see_light_and_contrast() -> None:
    locator = make_scorer("block0.conv1", "texture", locator=True).locator
    x, y = torch.rand(2, 2, 3, 64, 64, dtype=torch.float64) * 0.8 - 0.4
    with torch.no_grad():
        a, b = locator(x, y), locator(x + 0.3, y + 0.3)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(locator.normalised(2 * x, 2 * y), locator.normalised(x, y), rtol=0.1, atol=0.1)
        assert torch.isfinite(locator(torch.zeros_like(x), torch.zeros_like(x))).all()
