"""Each rewrite computes what the plain graph computes, changes what it is for, and leaves other graphs alone."""

import copy
import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.support.scorers import DTYPES, image_size, make_scorer, run_graph, some_patches
from train.graph import RECONSTRUCTION, plain_graph
from train.graph_rules import IR_VERSION, OPSET
from train.rewrites import REWRITES, enlarge_together, flatten_images, name_batch, rewrite

SCORERS = [  # feature layer, category, precision, locator, folded; an export takes seconds
    ("block0.conv1", "texture", "fp32", True, True),
    ("block2", "object", "fp32", False, False),
    ("block0.conv1", "texture", "fp16", True, False),
]


@pytest.fixture(scope="module", params=SCORERS, ids=lambda scorer: "-".join(map(str, scorer)))
def exported(request):
    """A plain graph, and the patches it takes: noise, black, white, one white pixel."""
    layer, category, precision, locator, folded = request.param
    size = image_size(category)
    patches = some_patches(4, size)
    patches[1], patches[2], patches[3] = 0, 255, 0
    patches[3, 0, -1] = 255
    return plain_graph(make_scorer(layer, category, locator=locator, folded=folded), size, DTYPES[precision]), patches


def is_fp16(model):
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)


def assert_same(found, expected, error=1e-5):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=error, atol=error * np.abs(b).max())


def applied(apply, plain):
    """A graph after a rewrite; None where it has nothing to rewrite."""
    changed = copy.deepcopy(plain)
    apply(changed)
    has_map = any(output.name == "anomaly_map" for output in plain.graph.output)
    if apply is enlarge_together and not has_map:
        assert changed == plain
        return None
    assert changed != plain
    return changed


@pytest.mark.parametrize("apply", [*REWRITES, rewrite], ids=lambda apply: apply.__name__)
def test_a_rewritten_scorer_computes_the_same(exported, apply):
    plain, patches = exported
    changed = applied(apply, plain)
    if changed is None:
        return
    onnx.checker.check_model(changed, full_check=True)
    assert [value.name for value in changed.graph.output] == [value.name for value in plain.graph.output]
    found, expected = (run_graph(model.SerializeToString(), patches) for model in (changed, plain))
    # With other nodes fused, ONNX Runtime rounds to fp16 elsewhere.
    assert_same(found, expected, 5e-3 if is_fp16(plain) else 1e-5)


@pytest.mark.parametrize("apply", [*REWRITES, rewrite], ids=lambda apply: apply.__name__)
def test_applying_it_again_changes_nothing(exported, apply):
    once = applied(apply, exported[0])
    if once is not None:
        twice = copy.deepcopy(once)
        apply(twice)
        assert twice == once


def test_every_tensor_of_the_generator_counts_as_many_patches_as_the_input(exported):
    model = copy.deepcopy(exported[0])
    adds = [node.output[0] for node in model.graph.node if node.op_type == "Add" and is_skip(model, node)]
    assert len(adds) >= 12
    unknown = {name for name in adds if batch(model, name) != "N"}
    assert unknown, "the plain graph says it by itself; the rewrite is needed no more"
    name_batch(model)
    still = {name for name in adds if batch(model, name) != "N"}
    assert still < unknown
    assert not [name for name in still if not name.startswith(critic_adds(model))]


def is_skip(model, node):
    made = {output: other.op_type for other in model.graph.node for output in other.output}
    return [made.get(name) for name in node.input] == ["Conv", "Conv"]


def critic_adds(model):
    """Deeper feature layers see image and reconstruction as one batch of 2N, which has no name."""
    made = {output: node for node in model.graph.node for output in node.output}
    return tuple(
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Add"
        and is_skip(model, node)
        and any(name.startswith("critic.") for source in node.input for name in made[source].input)
    )


def batch(model, name):
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    (value,) = [value for value in graph.value_info if value.name == name]
    return value.type.tensor_type.shape.dim[0].dim_param


def test_image_and_reconstruction_are_compared_plane_by_plane(exported):
    model = copy.deepcopy(exported[0])
    assert ranks_after_tanh(model) == {"Tanh": {4}, "Sub": {4}, "Abs": {4}}
    flatten_images(model)
    assert ranks_after_tanh(model) == {"Tanh": {3}, "Sub": {3}, "Abs": {3}}
    assert any(RECONSTRUCTION in node.output for node in model.graph.node)


def ranks_after_tanh(model):
    """Axes of what the reconstruction is computed and compared in."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    rank = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.output)}
    (tanh,) = [node for node in graph.node if node.op_type == "Tanh"]
    reached, ranks = {tanh.output[0]}, {"Tanh": {rank[tanh.output[0]]}}
    for operator in ("Sub", "Abs"):
        for node in graph.node:  # with fp16 weights, the reconstruction is made float32
            if node.op_type == "Cast" and reached.intersection(node.input):
                reached.update(node.output)
        nodes = [n for n in graph.node if n.op_type == operator and reached.intersection(n.input)]
        ranks[operator] = {rank[node.output[0]] for node in nodes}
        reached.update(node.output[0] for node in nodes)
    return ranks


def make_model(nodes, constants, output_rank, channels=3, height=4, width=5):
    """A graph from ``x`` (N, C, H, W) to ``y``."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, height, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * output_rank)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def evaluate(model, x):
    return ReferenceEvaluator(model).run(None, {"x": x})


PIXELWISE = st.sampled_from(["Abs", "Sqrt", "Tanh", "Sub", "Mul", "Add", "number", "mean", "Concat"])


@settings(max_examples=40, deadline=None)
@given(
    operators=st.lists(PIXELWISE, max_size=6),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    axes=st.sampled_from([(1,), (2, 3), (1, 2, 3), (2,), (3,), (0, 1), (0, 1, 2, 3)]),
    keepdims=st.booleans(),
)
def test_any_chain_of_pixelwise_operators_computes_the_same(operators, channels, size, axes, keepdims):
    constants = {"half": np.float32(0.5), "all": np.array([1, 2, 3]), "axes": np.array(axes)}
    nodes, at = [helper.make_node("Tanh", ["x"], ["v0"])], "v0"
    for i, operator in enumerate(operators):
        to = f"v{i + 1}"
        if operator in ("Abs", "Tanh"):
            nodes.append(helper.make_node(operator, [at], [to]))
        elif operator == "Sqrt":
            nodes += [helper.make_node("Abs", [at], [f"{to}.abs"]), helper.make_node("Sqrt", [f"{to}.abs"], [to])]
        elif operator == "number":
            nodes.append(helper.make_node("Mul", [at, "half"], [to]))
        elif operator == "mean":
            sums = helper.make_node("ReduceSum", [at, "all"], [f"{to}.sum"], keepdims=1)
            nodes += [sums, helper.make_node("Sub", [at, f"{to}.sum"], [to])]
        elif operator == "Concat":  # with as many channels as before, so that x still fits
            nodes += [helper.make_node("Concat", [at, "x"], [f"{to}.both"], axis=1)]
            constants |= {f"{to}.w": np.ones((channels, 2 * channels, 1, 1), np.float32) / channels}
            nodes += [helper.make_node("Conv", [f"{to}.both", f"{to}.w"], [to])]
        else:
            nodes.append(helper.make_node(operator, [at, "x"], [to]))
        at = to
    nodes.append(helper.make_node("ReduceSum", [at, "axes"], ["y"], keepdims=int(keepdims)))
    model = make_model(nodes, constants, 4 if keepdims else 4 - len(axes), channels, *size)
    changed = copy.deepcopy(model)
    rewrite(changed)
    onnx.checker.check_model(changed, full_check=True)
    assert changed != model
    x = np.random.default_rng(math.prod(size)).normal(size=(2, channels, *size)).astype(np.float32)
    assert_same(evaluate(changed, x), evaluate(model, x))


def a_resize(channels, scales, height=4):
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")]
    return make_model(nodes, {"s": np.array(scales, np.float32)}, 4, channels, height)


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([1, 2, 3]), height=st.integers(1, 6), n=st.integers(1, 4))
def test_maps_of_one_channel_are_enlarged_together(scale, height, n):
    model = a_resize(1, [1, 1, scale, 2], height)
    changed = copy.deepcopy(model)
    enlarge_together(changed)
    assert [node.op_type for node in changed.graph.node] == ["Reshape", "Resize", "Reshape"]
    onnx.checker.check_model(changed, full_check=True)
    x = np.random.default_rng(n).normal(size=(n, 1, height, 5)).astype(np.float32)
    assert_same(evaluate(changed, x), evaluate(model, x))


UNKNOWN = {
    "no tanh": make_model([helper.make_node("Abs", ["x"], ["y"])], {}, 4),
    "rows alone summed": make_model(
        [helper.make_node("LeakyRelu", ["x"], ["v"]), helper.make_node("ReduceSum", ["v", "a"], ["y"])],
        {"a": np.array([2])},
        4,
    ),
    "height unknown": make_model(
        [helper.make_node("Tanh", ["x"], ["v"]), helper.make_node("Sub", ["v", "x"], ["y"])], {}, 4, height="H"
    ),
    "a factor for each column": make_model(
        [helper.make_node("Sub", ["x", "w"], ["v"]), helper.make_node("Abs", ["v"], ["y"])],
        {"w": np.ones((5,), np.float32)},
        4,
    ),
    "more patches out than in": make_model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([-1, 4, 5])}, 3
    ),
}


@pytest.mark.parametrize(("channels", "scales"), [(2, [1, 1, 2, 2]), (1, [1, 2, 2, 2]), (1, [2, 1, 2, 2])])
def test_what_is_no_map_of_one_channel_is_enlarged_as_it_is(channels, scales):
    model = a_resize(channels, scales)
    enlarge_together(model)
    assert model == a_resize(channels, scales)


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_graphs_stay_as_they_are(name):
    model = copy.deepcopy(UNKNOWN[name])
    rewrite(model)
    assert model == UNKNOWN[name]


def test_a_factor_for_each_column_behind_a_tanh_keeps_its_columns():
    nodes = [helper.make_node("Tanh", ["x"], ["v"]), helper.make_node("Mul", ["v", "w"], ["y"])]
    model = make_model(nodes, {"w": np.arange(5, dtype=np.float32)}, 4)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = evaluate(model, x)
    rewrite(model)
    assert_same(evaluate(model, x), expected)
