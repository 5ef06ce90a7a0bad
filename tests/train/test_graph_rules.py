"""Rules for graphs: each one broken in turn, on graphs that keep all the others."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from train.graph_rules import IR_VERSION, OPSET, RULES, GraphError, check_graph


def make_model(nodes, constants, *, shape=("N", 3, 8, 8), dtype=TensorProto.FLOAT, opset=OPSET, ir_version=IR_VERSION):
    """A graph from ``x`` to ``y``."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def node(operator, *inputs, output="y", **attributes):
    return helper.make_node(operator, list(inputs), [output], f"the {operator}", **attributes)


def axes(*values):
    return np.array(values, np.int64)


KERNEL = np.ones((4, 3, 3, 3), np.float32)
ROI = np.zeros(0, np.float32)
SCALES = np.array([1, 1, 2, 2], np.float32)
RESIZE = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
ONE, ZERO = np.float32(1).reshape(()), np.int8(0).reshape(())


def quantized(scale=ONE, zero_point=ZERO, *, data="x", **attributes):
    """x -> QuantizeLinear -> DequantizeLinear -> y."""
    nodes = [
        node("QuantizeLinear", data, "scale", "zero", output="q", **attributes),
        node("DequantizeLinear", "q", "scale", "zero", output="d" if data == "w" else "y", **attributes),
    ]
    constants = {"scale": scale, "zero": zero_point}
    if data == "w":
        return make_model([*nodes, node("Conv", "x", "d")], {**constants, "w": KERNEL})
    return make_model(nodes, constants)


PER_CHANNEL = {"scale": np.ones(4, np.float32), "zero_point": np.zeros(4, np.int8), "data": "w", "axis": 0}

ALLOWED = {
    "conv": make_model([node("Conv", "x", "w", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {"w": KERNEL}),
    "half": make_model([node("Conv", "x", "w")], {"w": KERNEL.astype(np.float16)}, dtype=TensorProto.FLOAT16),
    "uint8 in": make_model([node("Cast", "x", to=TensorProto.FLOAT)], {}, dtype=TensorProto.UINT8),
    "resize": make_model([node("Resize", "x", "", "s", **RESIZE)], {"s": SCALES}),
    "sum": make_model([node("ReduceSum", "x", "a", keepdims=0)], {"a": axes(1, 2)}),
    "activation": quantized(),
    "weight": quantized(**PER_CHANNEL),
}

BROKEN = [
    (make_model([node("Softmax", "x")], {}), r"'the Softmax' \(Softmax\) is none of the operators Abs, Add, "),
    (make_model([node("Abs", "x")], {}, opset=18), r"operator sets \{'': 18\}, not 17"),
    (make_model([node("Abs", "x")], {}, ir_version=9), "IR version 9, not 8"),
    (
        make_model([node("Resize", "x", "", "s", **{**RESIZE, "mode": "cubic"})], {"s": SCALES}),
        r"\(Resize\) has mode = 'cubic', not 'linear'",
    ),
    (make_model([node("Resize", "x", "", "s")], {"s": SCALES}), "has no attribute mode"),
    (
        make_model(
            [node("Resize", "x", "", "s", **{**RESIZE, "coordinate_transformation_mode": "align_corners"})],
            {"s": SCALES},
        ),
        "'align_corners', not 'half_pixel'",
    ),
    (
        make_model(
            [node("Mul", "s", "s", output="computed"), node("Resize", "x", "", "computed", **RESIZE)], {"s": SCALES}
        ),
        r"\(Resize\) computes its input 2 \(computed\), which must be an initializer",
    ),
    (
        make_model([node("AveragePool", "x", kernel_shape=[2, 2], ceil_mode=1)], {}),
        r"\(AveragePool\) has ceil_mode = 1, not 0",
    ),
    (
        make_model([node("AveragePool", "x", kernel_shape=[2])], {}, shape=("N", 3, 8)),
        "an input of 3 dimensions, not 4",
    ),
    (make_model([node("Conv", "x", "w", auto_pad="SAME_UPPER")], {"w": KERNEL}), "auto_pad = 'SAME_UPPER'"),
    (make_model([node("Conv", "x", "w", group=3)], {"w": np.ones((3, 1, 3, 3), np.float32)}), "group = 3, not 1"),
    (
        make_model([node("Abs", "w", output="v"), node("Conv", "x", "v")], {"w": KERNEL}),
        r"\(Conv\) has weights \(v\) that are neither an initializer nor one quantized",
    ),
    (
        make_model(
            [node("Abs", "b", output="c"), node("Conv", "x", "w", "c")], {"w": KERNEL, "b": np.ones(4, np.float32)}
        ),
        r"computes its input 2 \(c\)",
    ),
    (make_model([node("Abs", "x")], {}, dtype=TensorProto.DOUBLE), r"reads x of type DOUBLE, not FLOAT or FLOAT16"),
    (
        make_model([node("Transpose", "x", perm=[0, 2, 3, 1])], {}, dtype=TensorProto.UINT8),
        r"\(Transpose\) reads x of type UINT8",
    ),
    (make_model([node("Cast", "x", to=TensorProto.INT32)], {}), "has to = 6, not 1 or 10"),
    (
        make_model([node("Gemm", "x", "w", transA=1)], {"w": np.ones((5, 4), np.float32)}, shape=(5, 3)),
        "transA = 1, not 0",
    ),
    (quantized(zero_point=np.int8(3).reshape(())), r"\(QuantizeLinear\) has a zero point of int8 that is not 1"),
    (quantized(zero_point=np.uint8(0).reshape(())), "zero point of uint8"),
    (quantized(scale=np.float32(0).reshape(())), "a scale that is not float32 above 0"),
    (quantized(**{**PER_CHANNEL, "data": "x", "scale": np.ones(3, np.float32), "zero_point": np.zeros(3, np.int8),
                  "axis": 1}), "axis = 1, not 0"),
    (quantized(np.ones(8, np.float32), np.zeros(8, np.int8), axis=0), "a scale for each channel of what is no weight"),
    (
        make_model([node("QuantizeLinear", "x", "s", output="q"), node("DequantizeLinear", "q", "s")], {"s": ONE}),
        r"\(QuantizeLinear\) has no zero point",
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_graphs_within_the_rules_pass(name):
    check_graph(ALLOWED[name])


@pytest.mark.parametrize(("model", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_a_broken_rule_names_the_node(model, message):
    with pytest.raises(GraphError, match=message) as caught:
        check_graph(model)
    if "the graph" not in message and "IR" not in message and "operator sets" not in message:
        assert "node 'the " in str(caught.value)
        assert "TensorRT 8.6 and later would not take the graph" in str(caught.value)


def test_operators_of_other_domains_are_refused():
    model = make_model([helper.make_node("Abs", ["x"], ["y"], "foreign", domain="com.microsoft")], {})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(GraphError, match=r"operator sets \{'': 17, 'com.microsoft': 1\}"):
        check_graph(model)


def test_attributes_of_newer_operators_are_refused():
    model = make_model([node("Resize", "x", "", "s", **RESIZE)], {"s": SCALES})
    model.graph.node[0].attribute.append(helper.make_attribute("antialias", 1))
    with pytest.raises(GraphError, match=r"\(Resize\) has the attribute antialias"):
        check_graph(model)


def test_rules_name_only_operators_and_attributes_that_onnx_has():
    for operator, rule in RULES.items():
        schema = onnx.defs.get_schema(operator, OPSET)
        assert set(rule.attributes) <= set(schema.attributes), operator
        assert max((*rule.constants, rule.weights or 0)) < schema.max_input, operator
