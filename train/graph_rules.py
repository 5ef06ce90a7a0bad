"""What a scorer's graph may hold: what TensorRT's ONNX parser takes from 8.6 on.

The table is that parser's own: ``docs/operators.md`` and the importers (``builtin_op_importers.cpp``) of onnx-tensorrt
at release/8.6-GA, narrowed where ``docs/operators.md`` of 9.0 to 10.1 takes less. A newer torch that exports something
else is noticed here, with the node named, and not on the line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engines.errors import EngineError

OPSET = 17
"""The newest that TensorRT 8.6's parser knows; its Resize has no antialias and its ReduceSum takes axes as input."""

IR_VERSION = 8
"""The file format of opset 17's time, which ONNX Runtime 1.17 and TensorRT 8.6 read."""


class GraphError(EngineError):
    """The graph is not what engines expect; a bug, or a torch version that exports differently."""


_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
_ANY = None  # any value


@dataclass(frozen=True)
class Rule:
    """What an operator may be like.

    Attributes:
        attributes: allowed attributes and their values; None allows any. Missing attributes have ONNX's defaults.
        constants: positions of inputs that must be initializers, where they are given.
        weights: position of the input that must be an initializer or one that is quantized and dequantized.
        types: element types of the other inputs.
        rank: dimensions of the first input; None: any.
    """

    attributes: Mapping[str, tuple[object, ...] | None] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    weights: int | None = None
    types: frozenset[int] = _FLOATS
    rank: int | None = None


_WINDOW = {"kernel_shape": _ANY, "strides": _ANY, "pads": _ANY, "auto_pad": ("NOTSET",)}

RULES: Mapping[str, Rule] = {
    "Abs": Rule(),
    "Add": Rule(),
    "AveragePool": Rule({**_WINDOW, "count_include_pad": (0, 1), "ceil_mode": (0,)}, rank=4),
    # uint8 is for inputs and outputs of the network only; no rule here lets a node make uint8.
    "Cast": Rule({"to": (TensorProto.FLOAT, TensorProto.FLOAT16)}, types=_FLOATS | {TensorProto.UINT8}),
    "Concat": Rule({"axis": _ANY}),
    "Conv": Rule({**_WINDOW, "dilations": _ANY, "group": (1,)}, constants=(2,), weights=1, rank=4),
    "DepthToSpace": Rule({"blocksize": _ANY, "mode": ("CRD", "DCR")}, rank=4),
    "DequantizeLinear": Rule({"axis": (0,)}, constants=(1, 2), types=frozenset({TensorProto.INT8})),
    "Gemm": Rule(
        {"alpha": (1.0,), "beta": (1.0,), "transA": (0,), "transB": (0, 1)}, constants=(2,), weights=1, rank=2
    ),
    "Div": Rule(),
    "LeakyRelu": Rule({"alpha": _ANY}),
    "Mul": Rule(),
    # 8.6 reads the scale as float32 whatever its type, so what is quantized is float32, too.
    "QuantizeLinear": Rule({"axis": (0,)}, constants=(1, 2), types=frozenset({TensorProto.FLOAT})),
    "ReduceSum": Rule({"keepdims": (0, 1), "noop_with_empty_axes": (0,)}, constants=(1,)),
    "Reshape": Rule({"allowzero": (0, 1)}, constants=(1,)),
    "Resize": Rule(
        {
            "mode": ("linear",),
            "coordinate_transformation_mode": ("half_pixel",),
            "exclude_outside": (0,),
            "nearest_mode": _ANY,  # of no effect on linear, as are the next two
            "cubic_coeff_a": _ANY,
            "extrapolation_value": _ANY,
        },
        constants=(1, 2, 3),
    ),
    "Slice": Rule(constants=(1, 2, 3, 4)),
    "Sqrt": Rule(),
    "Sub": Rule(),
    "Tanh": Rule(),
    "Transpose": Rule({"perm": _ANY}),
}

# ONNX's defaults that the rules do not allow: such an attribute must be there.
_REQUIRED = {"Resize": ("mode",)}


def check_graph(model: onnx.ModelProto) -> None:
    """Compare a graph with :data:`RULES`.

    Raises:
        GraphError: it breaks one; names the node, the operator and the rule.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise GraphError(f"the graph needs operator sets {opsets}, not {OPSET}; torch could not convert it down")
    if model.ir_version != IR_VERSION:
        raise GraphError(f"the graph is written in ONNX's IR version {model.ir_version}, not {IR_VERSION}")
    _Check(model).run()


class _Check:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
        self.nodes = graph.node
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {output: node for node in graph.node for output in node.output}
        values = (*graph.input, *graph.value_info, *graph.output)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types.update({name: tensor.data_type for name, tensor in self.constants.items()})
        self.ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}

    def run(self) -> None:
        for node in self.nodes:
            rule = RULES.get(node.op_type)
            if rule is None or node.domain:
                raise _broken(node, f"is none of the operators {', '.join(RULES)}")
            self._attributes(node, rule)
            self._inputs(node, rule)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                self._scale(node)

    def _attributes(self, node: NodeProto, rule: Rule) -> None:
        found = {attribute.name: _value(attribute) for attribute in node.attribute}
        for name, value in found.items():
            if name not in rule.attributes:
                raise _broken(node, f"has the attribute {name}")
            allowed = rule.attributes[name]
            if allowed is not None and value not in allowed:
                raise _broken(node, f"has {name} = {value!r}, not {' or '.join(map(repr, allowed))}")
        for name in _REQUIRED.get(node.op_type, ()):
            if name not in found:
                raise _broken(node, f"has no attribute {name}, and so ONNX's default")

    def _inputs(self, node: NodeProto, rule: Rule) -> None:
        if rule.rank is not None and self.ranks.get(node.input[0]) != rule.rank:
            raise _broken(node, f"has an input of {self.ranks.get(node.input[0])} dimensions, not {rule.rank}")
        for position, name in enumerate(node.input):
            if not name:
                continue
            if position in rule.constants and name not in self.constants:
                raise _broken(node, f"computes its input {position} ({name}), which must be an initializer")
            if position == rule.weights and not self._is_weight(name):
                raise _broken(node, f"has weights ({name}) that are neither an initializer nor one quantized")
            found = self.types.get(name)
            if position not in rule.constants and found not in rule.types:
                raise _broken(node, f"reads {name} of type {_type(found)}, not {_types(rule.types)}")

    def _is_weight(self, name: str) -> bool:
        """An initializer, or one behind a QuantizeLinear and a DequantizeLinear."""
        for operator in ("DequantizeLinear", "QuantizeLinear"):
            maker = self.makers.get(name)
            if maker is None or maker.op_type != operator:
                break
            name = maker.input[0]
        return name in self.constants

    def _scale(self, node: NodeProto) -> None:
        """Symmetric, and by channel for weights only; 8.6 needs a zero point as large as the scale."""
        if len(node.input) != 3:
            raise _broken(node, "has no zero point")
        scale, zero_point = (numpy_helper.to_array(self.constants[name]) for name in node.input[1:])
        if zero_point.dtype != np.int8 or zero_point.any() or zero_point.size != scale.size:
            raise _broken(node, f"has a zero point of {zero_point.dtype} that is not {scale.size} times 0 in int8")
        if scale.dtype != np.float32 or not (np.isfinite(scale) & (scale > 0)).all():
            raise _broken(node, "has a scale that is not float32 above 0")
        if scale.size != 1 and not self._is_weight(node.output[0] if node.op_type[0] == "D" else node.input[0]):
            raise _broken(node, "has a scale for each channel of what is no weight")


def _broken(node: NodeProto, how: str) -> GraphError:
    return GraphError(
        f"node {node.name or node.output[0]!r} ({node.op_type}) {how}; TensorRT 8.6 and later would not take the "
        "graph. This torch exports otherwise than the versions that cbigan-station was tested with; try one of those"
    )


def _value(attribute: onnx.AttributeProto) -> object:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _type(element_type: int | None) -> str:
    return "unknown" if not element_type else str(TensorProto.DataType.Name(element_type))


def _types(element_types: frozenset[int]) -> str:
    return " or ".join(sorted(map(_type, element_types)))
