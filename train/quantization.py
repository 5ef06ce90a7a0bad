"""The scorer's graph for int8: pairs of QuantizeLinear and DequantizeLinear where TensorRT shall compute in integers.

Which tensors get a pair, and why not others, is in docs/decisions/0031-what-int8-quantizes.md.
"""

import copy
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from engines.engine import UInt8Array
from train.graph_rules import check_graph

# The three blocks of E and of G that work on the largest maps: three quarters of the arithmetic, nine tenths of the
# bytes. The others cost more accuracy than they save time.
QUANTIZED_BLOCKS = tuple(f"encoder.trunk.blocks.{i}." for i in (0, 1, 2)) + tuple(
    f"generator.blocks.{i}." for i in (3, 4, 5)
)
# What reads the image, or what the first block makes of it. On smooth material the rounding of these maps is the same
# everywhere and does not average out: it alone was most of the error on a fine grid.
FLOAT_LAYERS = tuple(f"encoder.trunk.blocks.{i}.{layer}." for i in (0, 1) for layer in ("conv1", "skip"))

_LEVELS = 127  # symmetric: -128 is not used
_CHUNK = 16  # patches at once; all quantized tensors of them are held in memory


def quantize_graph(scorer: bytes, patches: UInt8Array) -> bytes:
    """Quantize a graph of ``train.graph.export_graph`` in float32.

    Weights get a scale for each output channel, activations one each, from the largest value that ``patches`` cause.

    Args:
        scorer: the graph, serialized.
        patches: uint8 (N, P, P, 3) of every kind that the graph has to score well.

    Raises:
        GraphError: the graph breaks a rule of ``train.graph_rules``.
    """
    model = onnx.load_from_string(scorer)
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and _is_quantized(node.input[1])]
    made = {node.output[0] for node in convolutions}
    read = {node.input[0] for node in convolutions}
    readers: list[tuple[NodeProto, int]] = []  # nodes, and which of their inputs gets a pair
    for node in graph.node:
        if node.output[0] in made or (node.op_type == "AveragePool" and node.output[0] in read):
            readers.append((node, 0))
        elif node.op_type == "Add" and node.input[0] in made:
            # TensorRT adds while it still has the convolution's sums at hand; it is what is added that must be small.
            readers.append((node, 1))

    largest = _largest_values(model, {node.input[position] for node, position in readers}, patches)
    for node, position in readers:
        node.input[position] = _dequantized(node.input[position])
    pairs: dict[str, list[NodeProto]] = {}
    for name, value in largest.items():
        pairs[name] = _pair(graph, name, np.asarray(value))
    for node in convolutions:
        name = node.input[1]
        pairs[name] = _pair(graph, name, np.abs(weights[name]).max(axis=(1, 2, 3)))
        node.input[1] = _dequantized(name)

    nodes = [pair for name in weights for pair in pairs.get(name, ())]
    for node in graph.node:
        nodes += [node, *(pair for output in node.output for pair in pairs.get(output, ()))]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    check_graph(model)
    return bytes(model.SerializeToString())


def _is_quantized(weight: str) -> bool:
    return weight.startswith(QUANTIZED_BLOCKS) and not weight.startswith(FLOAT_LAYERS)


def _dequantized(name: str) -> str:
    return f"{name}.dequantized"


def _pair(graph: onnx.GraphProto, name: str, largest: NDArray[np.floating]) -> list[NodeProto]:
    """Quantize and dequantize ``name``; scale and zero point go to the graph's initializers.

    Args:
        graph: gets the initializers; the nodes are not in it yet.
        name: the tensor.
        largest: largest absolute value, or one for each output channel of a weight.
    """
    # What is zero everywhere may have any scale but zero.
    scale = np.asarray(np.where(largest > 0, largest, 1) / _LEVELS, np.float32)
    parameters: dict[str, NDArray[np.generic]] = {
        f"{name}.scale": scale,
        f"{name}.zero_point": np.zeros(scale.shape, np.int8),
    }
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in parameters.items())
    quantized = f"{name}.quantized"
    nodes = [
        helper.make_node("QuantizeLinear", [name, *parameters], [quantized], f"quantize {name}"),
        helper.make_node("DequantizeLinear", [quantized, *parameters], [_dequantized(name)], f"dequantize {name}"),
    ]
    if scale.ndim:
        for node in nodes:
            node.attribute.append(helper.make_attribute("axis", 0))
    return nodes


def _largest_values(model: onnx.ModelProto, names: Iterable[str], patches: UInt8Array) -> dict[str, float]:
    """Largest absolute value of each inner tensor over ``patches``."""
    names = sorted(names)
    opened = copy.deepcopy(model)
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = np.zeros(len(names))
    for start in range(0, len(patches), _CHUNK):
        tensors = session.run(names, {"patches": patches[start : start + _CHUNK]})
        largest = np.maximum(largest, [np.abs(tensor).max() for tensor in tensors])
    return dict(zip(names, largest.tolist(), strict=True))
