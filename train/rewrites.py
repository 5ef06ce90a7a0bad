"""Exact rewrites of the scorer's graph: the same function, in a form that engines run faster.

Each takes an ONNX model and changes it in place; what it does not know it leaves as it is.
``benchmarks/graph_rewrites.py`` measures them, and docs/decisions/0069 tells of those that did not pay.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Shape = tuple[int, ...]
"""Sizes of a tensor; -1: not a constant."""


def rewrite(model: onnx.ModelProto) -> None:
    """Apply all of :data:`REWRITES`."""
    for apply in REWRITES:
        apply(model)


def name_batch(model: onnx.ModelProto) -> None:
    """Say of every tensor that counts patches that it has as many as the input.

    ``Reshape`` to (-1, ...) and ``Resize`` hide it from shape inference. ONNX Runtime adds a block's skip within the
    convolution only where it sees that both are of one shape.
    """
    graph = model.graph
    shapes = _shapes(model)
    for node in graph.node:
        if node.op_type == "Reshape":
            target = _constant(model, node.input[1])
            before, rest = shapes[node.input[0]], tuple(target[1:])
            if target[0] == -1 and -1 not in before[1:] and math.prod(before[1:]) == math.prod(rest) > 0:
                node.input[1] = _add_constant(model, f"{node.output[0]}.shape", [0, *rest])
                node.ClearField("attribute")  # allowzero: 0 means the input's size
    _drop_unused(model)

    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for node in graph.node:  # one after the other, as each tells the batch of those behind it
        if node.op_type == "Resize":
            values = _values(model)
            enlarged = values[node.output[0]]
            sizes = enlarged.type.tensor_type.shape.dim
            if values[node.input[0]].type.tensor_type.shape.dim[0].dim_param == batch != sizes[0].dim_param:
                sizes[0].dim_param = batch
                graph.value_info.append(enlarged)


_PIXELWISE = {"Abs", "Add", "Cast", "Div", "Mul", "Sqrt", "Sub", "Tanh"}


def flatten_images(model: onnx.ModelProto) -> None:
    """From G's tanh on, compute with images as (N, 3, P·P), not (N, 3, P, P), while no pixel meets its neighbours.

    Around convolutions OpenVINO keeps the channels of a pixel side by side. With three of them its vector units run
    nearly empty: comparing image and reconstruction took a tenth of the time. What has three axes it keeps by planes.
    """
    shapes = _shapes(model)
    flat: dict[str, str] = {}
    nodes: list[NodeProto] = []

    def flattened(name: str) -> str:
        if len(shapes.get(name, ())) != 4:  # a number
            return name
        if name not in flat:
            flat[name] = f"{name}.flat"
            _, channels, height, width = shapes[name]
            nodes.append(_reshape(model, name, flat[name], (channels, height * width)))
        return flat[name]

    for node in model.graph.node:
        reached = node.op_type == "Tanh" or any(name in flat for name in node.input)
        if not (reached and _flattens(node, model, shapes)):
            nodes.append(node)
            continue
        (output,) = node.output
        changed = NodeProto()
        changed.CopyFrom(node)
        changed.ClearField("input")
        changed.input.extend(flattened(name) for name in node.input)
        changed.output[0] = f"{output}.flat"
        if node.op_type == "ReduceSum":
            axes = [axis for axis in _constant(model, node.input[1]) if axis < 3]
            changed.input[1] = _add_constant(model, f"{output}.axes", axes)
        nodes.append(changed)
        if len(shapes[output]) == 4:
            flat[output] = changed.output[0]
        nodes.append(_reshape(model, changed.output[0], output, shapes[output][1:]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)


def _flattens(node: NodeProto, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Whether it computes the same on (N, C, H·W), given that every size but N is known."""
    planes = [shapes[name] for name in (*node.input, *node.output) if len(shapes.get(name, ())) == 4]
    if any(-1 in shape[1:] for shape in planes):
        return False
    if node.op_type == "ReduceSum":
        axes = _constant(model, node.input[1])
        return len(shapes[node.input[0]]) == 4 and min(axes) >= 1 and (2 in axes) == (3 in axes)
    if node.op_type == "Concat":
        return node.attribute[0].i == 1 and len(planes) == len(node.input) + 1
    # What is not a plane must be a number, and what is smaller than the others a number for each patch or channel.
    numbers = [shapes[name] for name in node.input if len(shapes[name]) != 4]
    sizes = {shape[2:] for shape in planes} - {(1, 1)}
    return node.op_type in _PIXELWISE and len(sizes) <= 1 and all(math.prod(shape) == 1 for shape in numbers)


def enlarge_together(model: onnx.ModelProto) -> None:
    """Enlarge maps of one channel, (N, 1, H, W), as the channels of a single image, (1, N, H, W).

    Vector units work on several channels at once, and patches are as independent as channels are.
    """
    shapes = _shapes(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Resize" or not _enlarges_maps(node, model, shapes):
            nodes.append(node)
            continue
        source, (output,) = node.input[0], node.output
        changed = NodeProto()
        changed.CopyFrom(node)
        changed.input[0], changed.output[0] = f"{output}.maps", f"{output}.enlarged"
        nodes += [
            _reshape(model, source, changed.input[0], (-1, *shapes[source][2:]), first=1),
            changed,
            _reshape(model, changed.output[0], output, shapes[output][1:], first=-1),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)


def _enlarges_maps(node: NodeProto, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Whether it enlarges one channel by constant factors, and neither channels nor patches."""
    before, after = shapes[node.input[0]], shapes[node.output[0]]
    one_channel = len(before) == len(after) == 4 and before[1] == after[1] == 1 and -1 not in (*before[2:], *after[2:])
    return one_channel and len(node.input) == 3 and _constant(model, node.input[2])[:2] == [1, 1]


REWRITES: tuple[Callable[[onnx.ModelProto], None], ...] = (flatten_images, enlarge_together, name_batch)


def _reshape(model: onnx.ModelProto, source: str, target: str, sizes: Sequence[int], first: int = 0) -> NodeProto:
    """The axes behind the first become ``sizes``. The first stays as it is, unless another size is given."""
    shape = _add_constant(model, f"{target}.shape", [first, *sizes])
    return helper.make_node("Reshape", [source, shape], [target], f"{target}.reshape")


def _values(model: onnx.ModelProto) -> dict[str, ValueInfoProto]:
    """What is known of each tensor that is no initializer."""
    outline = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    outline.graph.CopyFrom(
        onnx.GraphProto(name=model.graph.name, node=model.graph.node, value_info=model.graph.value_info)
    )
    outline.graph.input.extend(model.graph.input)
    outline.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:  # without weights, which need not be copied about
        small = math.prod(tensor.dims) < 16
        outline.graph.initializer.append(
            tensor if small else TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        )
    graph = onnx.shape_inference.infer_shapes(outline, strict_mode=True, data_prop=True).graph
    return {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for name, value in _values(model).items():
        sizes = value.type.tensor_type.shape.dim
        shapes[name] = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)
    return shapes


def _constant(model: onnx.ModelProto, name: str) -> list[int]:
    """Numbers of an initializer; none if it is not one."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return [int(number) for number in numpy_helper.to_array(tensor).ravel()]
    return []


def _add_constant(model: onnx.ModelProto, name: str, numbers: Sequence[int]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return name


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that no output depends on."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    del graph.initializer[:]
    graph.initializer.extend(initializers)
