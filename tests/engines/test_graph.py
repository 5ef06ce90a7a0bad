import hashlib
import json
from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines import graph as graph_module
from engines.bundle import read_bundle
from engines.errors import BundleError
from engines.graph import refuse_external_data, refuse_foreign_operators, refuse_untrusted_graph
from tests.support.bundles import make_bundle, toy_scorer
from train.graph_rules import RULES


def external_tensor(name="w"):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    return tensor


def graph(**kwargs):
    return helper.make_graph([], "g", [], [], **kwargs)


def in_initializer(model, tensor):
    model.graph.initializer.append(tensor)


def in_constant(model, tensor):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_tensor_list(model, tensor):
    model.graph.node.append(helper.make_node("Own", [], ["c"], values=[tensor]))


def in_subgraph(model, tensor):
    inner = graph(initializer=[tensor])
    outer = helper.make_graph([helper.make_node("If", ["a"], ["b"], then_branch=inner)], "g", [], [])
    model.graph.node.append(helper.make_node("Loop", ["a"], ["b"], bodies=[outer]))


def in_sparse_values(model, tensor):
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.arange(4), "i"), [9])
    )


def in_sparse_attribute(model, tensor):
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(np.arange(4.0), "v"), tensor, [9])
    model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))


def in_function(model, tensor):
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("own", "F", [], ["c"], [node], [helper.make_opsetid("", 17)]))


def in_training_graph(model, tensor):
    model.training_info.append(onnx.TrainingInfoProto(algorithm=graph(initializer=[tensor])))


PLACES = [
    in_initializer,
    in_constant,
    in_tensor_list,
    in_subgraph,
    in_sparse_values,
    in_sparse_attribute,
    in_function,
    in_training_graph,
]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_can_be(place):
    model = toy_scorer(16)
    place(model, numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    refuse_external_data(model.SerializeToString())  # the same tensor, its data inside

    model = toy_scorer(16)
    place(model, external_tensor())
    with pytest.raises(BundleError, match="keeps weights in another file"):
        refuse_external_data(model.SerializeToString())


@pytest.mark.parametrize("field", ["external_data", "data_location"])
def test_either_mark_is_enough(field):
    tensor = external_tensor()
    tensor.ClearField(field)
    model = toy_scorer(16)
    model.graph.initializer.append(tensor)
    with pytest.raises(BundleError, match="keeps weights in another file"):
        refuse_external_data(model.SerializeToString())


def test_every_message_of_onnx_that_can_hold_a_tensor_is_known():
    """Walks the onnx package's own description of the format, so that a newer one that adds a place is noticed."""
    pending, fields = [onnx.ModelProto.DESCRIPTOR], {}
    while pending:
        message = pending.pop()
        if message.name not in fields:
            nested = {field.number: field.message_type for field in message.fields if field.message_type is not None}
            fields[message.name] = {number: inner.name for number, inner in nested.items()}
            pending += nested.values()
    holders = {"TensorProto"}
    while more := {name for name, nested in fields.items() if holders & set(nested.values())} - holders:
        holders |= more

    def short(name):
        return name.removesuffix("Proto").removesuffix("Info")

    assert {
        short(name): {number: short(inner) for number, inner in fields[name].items() if inner in holders}
        for name in holders
    } == graph_module._NESTED


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x7f\x00", b"\x0b", b"\x80" * 11])
def test_bytes_that_are_no_graph_are_refused(data):
    with pytest.raises(BundleError, match="is no ONNX graph"):
        refuse_external_data(data)


@given(st.data())
def test_damage_ends_in_a_bundle_error_or_in_none(data):
    damaged = bytearray(SERIALIZED)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BundleError):  # any other error fails the test
        refuse_untrusted_graph(bytes(damaged))


SERIALIZED = toy_scorer(16).SerializeToString()


def with_node(node):
    model = toy_scorer(16)
    model.graph.node.append(node)
    return model


def looping():
    body = helper.make_graph([helper.make_node("Abs", ["v"], ["w"])], "body", [], [])
    return with_node(helper.make_node("Loop", ["turns", "go", "v"], ["w"], body=body))


def with_function():
    model = toy_scorer(16)
    node = helper.make_node("Abs", ["x"], ["c"])
    model.functions.append(helper.make_function("own", "F", ["x"], ["c"], [node], [helper.make_opsetid("", 17)]))
    return model


def inside_an_attribute():
    inner = helper.make_graph([helper.make_node("RandomNormal", [], ["r"], shape=[1 << 40])], "g", [], [])
    return with_node(helper.make_node("Abs", ["x"], ["y"], hidden=inner))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (looping(), "uses the operator 'Loop'"),
        (with_node(helper.make_node("ConstantOfShape", ["s"], ["c"])), "uses the operator 'ConstantOfShape'"),
        (with_node(helper.make_node("Abs", ["x"], ["y"], domain="com.microsoft")), "operators of 'com.microsoft'"),
        (with_node(helper.make_node("é" * 100, ["x"], ["y"])), "uses the operator"),
        (with_function(), "defines functions of its own"),
        (inside_an_attribute(), "uses the operator 'RandomNormal'"),
    ],
)
def test_programs_that_are_no_scorers_are_refused(model, message):
    with pytest.raises(BundleError, match=message):
        refuse_foreign_operators(model.SerializeToString())


def test_graphs_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_NODES", 3)
    with pytest.raises(BundleError, match="more than 3 nodes"):
        refuse_foreign_operators(toy_scorer(16).SerializeToString())


def test_all_that_is_exported_may_be_read():
    assert RULES.keys() <= graph_module.OPERATORS


def test_a_bundle_with_such_a_graph_is_refused(tmp_path):
    path = make_bundle(tmp_path / "b", 16).path
    scorer = looping().SerializeToString()
    (path / "scorer.onnx").write_bytes(scorer)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["scorer.onnx"] = hashlib.sha256(scorer).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"scorer\.onnx: the scorer uses the operator 'Loop'"):
        read_bundle(path)
