"""The int8 graph: what is quantized and what not, scales from the patches, and how far scores move."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.scorers import image_size, make_graph, make_scorer, run_graph, run_torch, some_patches
from train.quantization import quantize_graph

EXPORTED = [("block0.conv1", "texture"), ("block2", "object")]


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(make_graph("block0.conv1", "texture", precision="int8"))


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def makers(model):
    return {output: node for node in model.graph.node for output in node.output}


def dequantized(model, name):
    """The tensor that ``name`` is the quantized and dequantized form of; None if it is none."""
    made = makers(model)
    node = made.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    assert made[node.input[0]].op_type == "QuantizeLinear"
    assert list(made[node.input[0]].input[1:]) == list(node.input[1:]), "scales differ"
    return made[node.input[0]].input[0]


def test_the_blocks_on_large_maps_are_quantized_and_nothing_else_is(model):
    quantized, plain = set(), set()
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            image, weight = (dequantized(model, name) for name in node.input[:2])
            assert (image is None) == (weight is None), f"{node.name} has only one side quantized"
            (plain if weight is None else quantized).add((weight or node.input[1]).removesuffix(".weight"))
    layers = ("conv1", "conv2", "conv3", "skip")
    assert quantized == {
        *(f"encoder.trunk.blocks.{i}.{layer}" for i in (0, 1) for layer in ("conv2", "conv3")),
        *(f"encoder.trunk.blocks.2.{layer}" for layer in layers),
        *(f"generator.blocks.{i}.{layer}" for i in (3, 4, 5) for layer in layers),
    }
    assert {"generator.out", "critic.trunk.blocks.0.conv1", "encoder.dense0", "encoder.trunk.blocks.0.conv1"} <= plain


def test_all_but_convolutions_is_computed_in_float(model):
    for node in model.graph.node:
        if node.op_type not in ("Conv", "QuantizeLinear", "DequantizeLinear"):
            assert all(dequantized(model, name) is None for name in node.input), node.name
    for output in model.graph.output:
        assert makers(model)[output.name].op_type not in ("QuantizeLinear", "DequantizeLinear")


def test_nothing_stands_between_a_convolution_and_what_is_computed_with_it(model):
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in makers(model):
            assert makers(model)[node.input[0]].op_type in ("LeakyRelu", "AveragePool", "Resize"), node.name


def test_weights_have_a_scale_for_each_channel_from_their_largest_value(model):
    arrays = initializers(model)
    weight = arrays["generator.blocks.4.conv2.weight"]
    scale = arrays["generator.blocks.4.conv2.weight_scale"]
    assert scale.shape == (len(weight),)
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    assert not arrays["generator.blocks.4.conv2.weight_zero_point"].any()


def test_activations_have_the_range_that_the_patches_cause():
    graph = make_graph("block0.conv1", "texture")
    flat = np.full((3, 64, 64, 3), 128, np.uint8)
    few, more = (
        initializers(onnx.load_from_string(quantize_graph(graph, patches)))
        for patches in (flat, np.concatenate([flat, some_patches(20)]))
    )
    scales = [name for name in few if name.endswith("_scale") and not few[name].ndim]
    assert len(scales) >= 16
    assert all(more[name] >= few[name] for name in scales)
    assert sum(float(more[name]) > 1.2 * float(few[name]) for name in scales) > 5


def test_quantizing_tells_nothing_of_the_machine(model, capfd):
    assert not model.metadata_props
    assert not model.graph.value_info
    quantize_graph(make_graph("block0.conv1", "texture"), some_patches(2))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_no_pair_is_written_twice(model):
    pairs = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize(("layer", "category"), EXPORTED)
def test_scores_move_little(layer, category):
    patches = some_patches(5, image_size(category))
    expected = run_torch(make_scorer(layer, category), patches)
    found = run_graph(make_graph(layer, category, precision="int8"), patches)
    for a, b, most in zip(found, expected, (0.02, 0.02, 0.1), strict=False):
        assert np.abs(a - b).max() < most * np.abs(b).max()
        assert np.abs(a - b).max() > 1e-5 * np.abs(b).max(), "nothing was quantized"


def test_tensors_that_are_always_zero_do_not_divide_by_zero():
    model = onnx.load_from_string(make_graph("block0.conv1", "texture"))
    for tensor in model.graph.initializer:
        if tensor.name == "generator.blocks.4.conv1.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
        if tensor.name == "generator.blocks.4.conv1.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    outputs = run_graph(quantize_graph(model.SerializeToString(), some_patches(3)), some_patches(3))
    assert all(np.isfinite(output).all() for output in outputs)
