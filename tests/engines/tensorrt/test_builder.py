"""With NVIDIA's real parser and builder, which need no GPU as TensorRT-RTX; a double stands in for 8.6's own ways."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from engines.errors import BackendError
from engines.manifest import scorer_tensors
from engines.tensorrt import library
from engines.tensorrt.builder import BuildOptions, _Monitor, _use_timings, build_plan
from tests.support.bundles import toy_scorer

PATCH = 16
TENSORS = scorer_tensors(PATCH)
OPTIONS = BuildOptions("fp32", max_patches=8, workspace=2**26)

pytestmark = pytest.mark.skipif(library.problem() is not None, reason="the extra 'tensorrt' is not installed")


@pytest.fixture(scope="module")
def scorer():
    return toy_scorer(PATCH).SerializeToString()


def test_a_plan_and_what_is_in_it(scorer):
    built = build_plan(scorer, TENSORS, OPTIONS)
    assert len(built.plan) > 10_000
    tensors = {t.name: (t.direction, t.dtype, t.shape) for t in built.inspection.tensors}
    assert tensors == {
        "patches": ("in", "uint8", (-1, PATCH, PATCH, 3)),
        "reconstruction_error": ("out", "float32", (-1,)),
        "feature_error": ("out", "float32", (-1,)),
        "residual": ("out", "float32", (-1, PATCH, PATCH)),
    }
    assert built.inspection.patches == (1, 8, 8)
    assert built.inspection.layers
    assert {"uint8", "float32"} <= {dtype for layer in built.inspection.layers for dtype in layer.dtypes}


def test_a_plan_cannot_be_loaded_without_a_driver_and_says_so(scorer):
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    plan = build_plan(scorer, TENSORS, OPTIONS).plan
    with library.transcript() as heard:
        assert library.trt().Runtime(library.logger()).deserialize_cuda_engine(plan) is None
    assert "driver" in heard.reason()


def test_progress_only_grows_and_arrives(scorer):
    seen = []
    build_plan(scorer, TENSORS, OPTIONS, lambda phase, share: seen.append((phase, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5
    assert shares[-1] == 1.0
    assert len({phase for phase, _ in seen}) > 1


class StopError(Exception):
    pass


def test_what_progress_raises_ends_the_build(scorer):
    seen = []

    def stop(phase, share):
        seen.append(share)
        raise StopError

    with pytest.raises(StopError):
        build_plan(scorer, TENSORS, OPTIONS, stop)
    assert len(seen) == 1


def test_ctrl_c_ends_the_build_and_is_as_it_was_afterwards(scorer):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_plan(scorer, TENSORS, OPTIONS, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_build_in_another_thread(scorer):
    plans = []
    thread = threading.Thread(target=lambda: plans.append(build_plan(scorer, TENSORS, OPTIONS)))
    thread.start()
    thread.join()
    assert plans[0].inspection.patches == (1, 8, 8)


def test_the_parsers_errors_name_node_operator_and_reason():
    model = toy_scorer(PATCH)
    model.graph.node[3].op_type = "NoSuchOperator"
    model.graph.node[3].name = "the_distance"
    with pytest.raises(BackendError, match=r"refuses the graph: node 3 \(NoSuchOperator 'the_distance'\): .+Export"):
        build_plan(model.SerializeToString(), TENSORS, OPTIONS)


@pytest.mark.parametrize("scorer", [b"", b"no graph", b"\x0a\xff\xff"])
def test_bytes_that_are_no_graph(scorer):
    with pytest.raises(BackendError, match=r"refuses the graph|the graph has nothing where"):
        build_plan(scorer, TENSORS, OPTIONS)


def test_a_graph_that_is_not_what_the_manifest_says(scorer):
    with pytest.raises(BackendError, match=r"in patches uint8 \(-1, 16, 16, 3\).* where the manifest has .*32, 32"):
        build_plan(scorer, scorer_tensors(32), OPTIONS)


def test_a_build_that_fails_says_why():
    """A graph that parses but cannot run at the profile's sizes."""
    model = toy_scorer(PATCH)
    # Reshape N numbers to exactly 3: impossible for the profile's 8 patches.
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3], np.int64), "three"))
    model.graph.node[4].output[0] = "inner"
    model.graph.node.append(onnx.helper.make_node("Reshape", ["inner", "three"], ["reshaped"]))
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["reshaped"], ["total"], keepdims=1))
    model.graph.node.append(onnx.helper.make_node("Add", ["inner", "total"], ["reconstruction_error"]))
    with pytest.raises(BackendError, match=r"(cannot build a plan|refuses the graph): .+"):
        build_plan(model.SerializeToString(), TENSORS, OPTIONS)


@pytest.mark.parametrize(("precision", "patches", "workspace"), [("fp8", 1, 1), ("fp32", 0, 1), ("fp32", 1, 0)])
def test_impossible_options(precision, patches, workspace):
    with pytest.raises(ValueError, match="impossible options"):
        BuildOptions(precision, patches, workspace)


def test_no_builder_without_a_driver(monkeypatch, scorer):
    """Double of TensorRT's module where no driver is: constructing a builder is a TypeError of pybind11."""

    def no_builder(_logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(library, "trt", lambda: SimpleNamespace(Builder=no_builder, __version__="10.3.0", __name__="x"))
    monkeypatch.setattr(library, "logger", object)
    with pytest.raises(BackendError, match=r"cannot make the builder.*driver"):
        build_plan(scorer, TENSORS, OPTIONS)


class ConfigDouble:
    """Double of IBuilderConfig's timing cache; a cache of another device is called b'other'."""

    def __init__(self):
        self.used = None

    def create_timing_cache(self, data):
        return None if data == b"damaged" else SimpleNamespace(data=data)

    def set_timing_cache(self, cache, ignore_mismatch):
        if ignore_mismatch:
            raise AssertionError("kernel times of another device must not be taken")
        if cache.data == b"other":
            return False
        self.used = cache.data
        return True


@pytest.mark.parametrize(("timings", "used"), [(b"", b""), (b"mine", b"mine"), (b"other", b""), (b"damaged", b"")])
def test_only_this_devices_kernel_times_are_taken(monkeypatch, timings, used):
    monkeypatch.setattr(library, "has_timing_cache", lambda: True)
    config = ConfigDouble()
    assert _use_timings(config, timings).data == used
    assert config.used == used


def test_rtx_is_given_no_timing_cache(monkeypatch):
    monkeypatch.setattr(library, "has_timing_cache", lambda: False)
    assert _use_timings(ConfigDouble(), b"mine") is None


def test_nested_phases_add_up():
    seen = []
    monitor = _Monitor(lambda phase, share: seen.append((phase, round(share, 6))))
    monitor._start("all", None, 2)
    monitor._start("first half", "all", 4)
    for step in range(4):
        assert monitor._step("first half", step)
    monitor._finish("first half")
    monitor._step("all", 0)
    monitor._start("second half", "all", 1)
    monitor._step("second half", 0)
    monitor._finish("second half")
    monitor._step("all", 1)
    assert seen == [
        ("first half", 0.125),
        ("first half", 0.25),
        ("first half", 0.375),
        ("first half", 0.5),
        ("all", 0.5),
        ("second half", 1.0),
        ("all", 1.0),
    ]


def test_a_step_of_an_unknown_phase_does_no_harm():
    monitor = _Monitor(lambda *_: None)
    assert monitor._step("never started", 0)
    monitor._finish("never started")
