import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines import cpu, ort
from engines.engine import EngineSettings
from engines.errors import BackendError
from engines.ort import OnnxRuntimeEngine
from engines.selftest import OUTPUTS, run_selftest
from tests.support.bundles import make_bundle, toy_scorer, toy_scores

PATCH = 16
SETTINGS = EngineSettings(threads=1)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("ort") / "toy", PATCH)


@pytest.fixture
def engine(bundle):
    engine = OnnxRuntimeEngine(bundle, SETTINGS)
    yield engine
    engine.close()


def with_scorer(bundle, scorer):
    """The bundle with other bytes for a scorer, as if they had been verified."""
    return replace(bundle, files=MappingProxyType({**bundle.files, "scorer.onnx": scorer}))


def assert_close(scores, expected):
    for name in OUTPUTS:
        wanted = getattr(expected, name)
        found = getattr(scores, name)
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_it_says_what_it_is(engine):
    assert engine.info.backend == "onnxruntime"
    assert engine.info.backend_version == ort.VERSION
    assert engine.info.precision == "fp32"
    assert engine.info.device.endswith("threads: 1")


def test_threads_default_to_the_cores_of_the_process(bundle):
    engine = OnnxRuntimeEngine(bundle, EngineSettings())
    assert engine.info.device.endswith(f"threads: {len(os.sched_getaffinity(0))}")


def test_other_precisions_have_graphs_of_their_own(bundle):
    with pytest.raises(BackendError, match=r"scorer\.fp16\.onnx: this bundle has no graph for fp16"):
        OnnxRuntimeEngine(bundle, SETTINGS, "fp16")

    other = toy_scorer(PATCH, grey=100).SerializeToString()
    files = MappingProxyType({**bundle.files, "scorer.fp16.onnx": other})
    engine = OnnxRuntimeEngine(replace(bundle, files=files), SETTINGS, "fp16")
    assert engine.info.precision == "fp16"
    assert_close(engine.score(bundle.selftest.patches), toy_scores(bundle.selftest.patches, grey=100))


def test_it_passes_the_self_test(engine, bundle):
    assert run_selftest(engine, bundle).worst < 1e-5


def a_block(channels):
    """x (N, C, 8, 8) -> a block of the networks -> y; weights and biases are used."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b"], ["c1"], pads=[1, 1, 1, 1]),
            helper.make_node("LeakyRelu", ["c1"], ["l1"], alpha=0.2),
            helper.make_node("Conv", ["l1", "w3", "b"], ["c3"]),
            helper.make_node("Conv", ["x", "ws", "b"], ["s"]),
            helper.make_node("Add", ["c3", "s"], ["a"]),
            helper.make_node("LeakyRelu", ["a"], ["l3"], alpha=0.2),
            helper.make_node("AveragePool", ["l3"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        ],
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", channels, 4, 4])],
        [
            numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)
            for name, shape in {
                "w1": (channels, channels, 3, 3),
                "w3": (channels, channels, 1, 1),
                "ws": (channels, channels, 1, 1),
                "b": (channels,),
            }.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def of_onnxruntime(graph, x):
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.skipif(not ort.fuses(), reason="this ONNX Runtime does it wrong")
@pytest.mark.parametrize("channels", [3, 8, 16, 24, 48])
def test_a_convolution_adds_the_skip_and_does_the_leaky_relu(channels):
    plain = a_block(channels)
    fused = ort.fuse(plain)
    nodes = onnx.load_from_string(fused).graph.node
    assert sorted(node.op_type for node in nodes) == ["AveragePool", "Conv", "FusedConv", "FusedConv"]
    assert sorted(len(node.input) for node in nodes if node.op_type == "FusedConv") == [3, 4]
    x = RNG.normal(size=(5, channels, 8, 8)).astype(np.float32)
    expected = ReferenceEvaluator(plain).run(None, {"x": x})[0]
    np.testing.assert_allclose(of_onnxruntime(fused, x), expected, rtol=1e-4, atol=1e-4)


def test_older_versions_get_the_graph_as_it_is(bundle, monkeypatch):
    monkeypatch.setattr(ort, "VERSION", "1.26.0")
    monkeypatch.setattr(ort, "fuse", None)
    assert run_selftest(OnnxRuntimeEngine(bundle, SETTINGS), bundle).worst < 1e-5


def test_no_file_stays_open(bundle):
    before = len(list(Path("/proc/self/fd").iterdir()))
    OnnxRuntimeEngine(bundle, SETTINGS).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_scores_are_numpys_whatever_the_chunks(bundle, monkeypatch, n):
    monkeypatch.setattr(cpu, "CHUNK_PIXELS_TIMES_WIDTH", 7 * PATCH * PATCH)
    patches = RNG.integers(0, 256, (n, PATCH, PATCH, 3), dtype=np.uint8)
    assert_close(OnnxRuntimeEngine(bundle, SETTINGS).score(patches), toy_scores(patches))


def test_the_graph_never_gets_more_than_a_chunk(bundle, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_PIXELS_TIMES_WIDTH", 8 * PATCH * PATCH)
    engine = OnnxRuntimeEngine(bundle, SETTINGS)
    sizes = []
    session = engine._session

    class Recorder:
        def run(self, outputs, feeds):
            sizes.append(len(feeds["patches"]))
            return session.run(outputs, feeds)

    engine._session = Recorder()
    engine.score(RNG.integers(0, 256, (20, PATCH, PATCH, 3), dtype=np.uint8))
    assert sizes == [8, 8, 4]


def test_narrow_networks_do_not_get_more_at_once(bundle, monkeypatch):
    monkeypatch.setattr(ort, "CHUNK_PIXELS", 3 * PATCH * PATCH)
    engine = OnnxRuntimeEngine(bundle, SETTINGS)
    assert engine._chunk == 3
    patches = RNG.integers(0, 256, (8, PATCH, PATCH, 3), dtype=np.uint8)
    assert_close(engine.score(patches), toy_scores(patches))


def test_a_chunk_holds_at_least_one_patch(bundle, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_PIXELS_TIMES_WIDTH", 1)
    patches = RNG.integers(0, 256, (3, PATCH, PATCH, 3), dtype=np.uint8)
    assert_close(OnnxRuntimeEngine(bundle, SETTINGS).score(patches), toy_scores(patches))


def test_patches_may_be_a_view(engine):
    frame = RNG.integers(0, 256, (4, 2 * PATCH, 2 * PATCH, 3), dtype=np.uint8)
    view = frame[:, ::2, ::-2]
    assert_close(engine.score(view), toy_scores(view))


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((0, PATCH, PATCH, 3), np.uint8),
        np.zeros((PATCH, PATCH, 3), np.uint8),
        np.zeros((1, PATCH, PATCH, 1), np.uint8),
        np.zeros((1, 3, PATCH, PATCH), np.uint8),
        np.zeros((1, PATCH, PATCH, 3), np.float32),
    ],
)
def test_other_shapes_and_types_are_refused(engine, patches):
    with pytest.raises(ValueError, match=r"patches must be uint8 \(N, 16, 16, 3\) with N >= 1"):
        engine.score(patches)


def test_a_closed_engine_says_so(bundle):
    engine = OnnxRuntimeEngine(bundle, SETTINGS)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.score(bundle.selftest.patches)


def rename_output(model):
    model.graph.output[0].name = "surprise"
    model.graph.node.append(helper.make_node("Identity", ["reconstruction_error"], ["surprise"]))


def take_floats(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def fix_the_number_of_patches(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def drop_an_output(model):
    del model.graph.output[1]


@pytest.mark.parametrize("alter", [rename_output, take_floats, fix_the_number_of_patches, drop_an_output])
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(bundle, alter):
    model = toy_scorer(PATCH)
    alter(model)
    with pytest.raises(BackendError, match=r"scorer\.onnx: the graph's (in|out)puts are .*the manifest says"):
        OnnxRuntimeEngine(with_scorer(bundle, model.SerializeToString()), SETTINGS)


def test_a_graph_of_another_patch_size_is_refused(bundle):
    with pytest.raises(BackendError, match=r"\(N, 32, 32, 3\), but the manifest says patches uint8 \(N, 16, 16, 3\)"):
        OnnxRuntimeEngine(with_scorer(bundle, toy_scorer(32).SerializeToString()), SETTINGS)


def unknown_operator(model):
    model.graph.node[0].op_type = "NoSuchOperator"


def future_opset(model):
    model.opset_import[0].version = 9999


@pytest.mark.parametrize("alter", [unknown_operator, future_opset])
def test_a_graph_that_onnxruntime_refuses_is_a_backend_error(bundle, alter):
    model = toy_scorer(PATCH)
    alter(model)
    with pytest.raises(BackendError, match="refuses the graph"):
        OnnxRuntimeEngine(with_scorer(bundle, model.SerializeToString()), SETTINGS)


@pytest.mark.parametrize("scorer", [b"", b"no graph", b"\x1c\0\0\0ORTM" + b"\0" * 64])
def test_bytes_that_are_no_graph_are_a_backend_error(bundle, scorer):
    with pytest.raises(BackendError):
        OnnxRuntimeEngine(with_scorer(bundle, scorer), SETTINGS)


def test_onnxruntimes_own_format_is_refused(bundle, tmp_path):
    """It would get past engines/graph.py, which knows ONNX only."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "scorer.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(bundle.scorer, options)
    converted = (tmp_path / "scorer.ort").read_bytes()
    assert onnxruntime.InferenceSession(converted).get_inputs()[0].name == "patches"
    with pytest.raises(BackendError, match="refuses the graph"):
        OnnxRuntimeEngine(with_scorer(bundle, converted), SETTINGS)


def test_a_failure_while_scoring_is_a_backend_error_and_prints_nothing(bundle, capfd):
    model = toy_scorer(PATCH)
    # Reshaping N numbers to as many as the brightest pixel says fails, which no check of the graph can know.
    model.graph.node[4].output[0] = "inner"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["brightest"], keepdims=0),
            helper.make_node("Cast", ["brightest"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["whole", "first"], ["size"]),
            helper.make_node("Reshape", ["inner", "size"], ["reconstruction_error"]),
        ]
    )
    engine = OnnxRuntimeEngine(with_scorer(bundle, model.SerializeToString()), SETTINGS)
    with pytest.raises(BackendError, match="failed while scoring"):
        engine.score(bundle.selftest.patches)
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_would_read_weights_from_the_working_directory(bundle, tmp_path, monkeypatch):
    """Why engines/graph.py exists. If this fails, ONNX Runtime has become stricter; engines/graph.py may go one day."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(np.full(PATCH * PATCH * 3, 7, np.float32).tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[PATCH, PATCH, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(PATCH * PATCH * 3 * 4))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    model = toy_scorer(PATCH)
    model.graph.initializer.append(tensor)
    model.graph.node[1].input[1] = "w"
    patches = np.full((1, PATCH, PATCH, 3), 7, np.uint8)
    scores = OnnxRuntimeEngine(with_scorer(bundle, model.SerializeToString()), SETTINGS).score(patches)
    assert scores.residual.max() == 0


def test_onnxruntime_reports_to_nobody(tmp_path):
    """With its telemetry on, ONNX Runtime leaves a device id and a queue of events in the home directory."""
    code = (
        "import numpy as np; from pathlib import Path; from tests.support.bundles import make_bundle;"
        "from engines.opening import open_engine; from engines.engine import EngineSettings;"
        f"bundle = make_bundle(Path({str(tmp_path / 'toy')!r}), 16);"
        "open_engine(bundle, EngineSettings()).score(bundle.selftest.patches)"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**environment, "HOME": str(home)},
        cwd=Path(__file__).parents[2],
    )
    assert list(home.rglob("*")) == []
