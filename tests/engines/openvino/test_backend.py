"""The engine as a whole, with the real OpenVINO."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from structlog.testing import capture_logs

from engines import cpu, gate
from engines.bundle import pack_calibration, write_bundle
from engines.cache import Broken, Entry, PlanCache, Verdict
from engines.engine import EngineSettings
from engines.errors import BackendError, SelfTestError
from engines.opening import installed_backends, open_engine
from engines.openvino import library, models
from engines.openvino.backend import OpenVinoEngine, open_openvino
from engines.ort import OnnxRuntimeEngine
from engines.selftest import OUTPUTS, TOLERANCE, run_selftest
from tests.support.bundles import make_bundle, make_description, make_selftest, toy_scorer, toy_scores

pytestmark = pytest.mark.skipif(library.problem() is not None, reason="the extra 'openvino' is not installed")

PATCH = 16
RNG = np.random.default_rng(0)
has_bf16 = pytest.mark.skipif(
    library.problem() is not None or "BF16" not in library.capabilities(), reason="this CPU has no bf16"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("openvino") / "toy", PATCH)


@pytest.fixture
def settings(tmp_path):
    return EngineSettings(backend="openvino", cache=tmp_path / "plans", threads=2)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A scorer of untrained networks, with locator, int8 graph and calibration patches."""
    from engines.bundle import ExpectedScores, SelfTest
    from engines.manifest import Network
    from tests.support.scorers import image_size, make_graph, make_scorer, run_torch, some_patches

    size = image_size("texture")
    layer = "block0.conv1"
    path = tmp_path_factory.mktemp("openvino") / "real"
    example = make_bundle(path.with_name("example"), size, smoothing=2.0)
    patches = some_patches(16, size)
    *expected, _ = run_torch(make_scorer(layer, "texture", locator=True), patches)
    description = make_description(example.manifest.preprocessing, name="real", smoothing=2.0)
    return write_bundle(
        path,
        description.model_copy(update={"network": Network(width=3, latent_size=64, feature_layer=layer)}),
        make_graph(layer, "texture", locator=True),
        SelfTest(patches, ExpectedScores(*(output.astype(np.float64) for output in expected))),
        "# Real",
        {
            "scorer.int8.onnx": make_graph(layer, "texture", precision="int8", locator=True),
            "calibration.npz": pack_calibration(some_patches(40, size)),
        },
    )


def quiet(_doing, _share):
    pass


def some(n):
    return np.random.default_rng(n).integers(0, 256, (n, PATCH, PATCH, 3), dtype=np.uint8)


def assert_close(scores, expected):
    for name in OUTPUTS:
        found, wanted = getattr(scores, name), getattr(expected, name)
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def with_file(bundle, name, data):
    """The bundle with other bytes for a file, as if they had been verified."""
    return replace(bundle, files=MappingProxyType({**bundle.files, name: data}))


def only_entry(settings):
    (entry,) = PlanCache(settings.cache).entries()
    return entry


# --- scores ---


@pytest.mark.parametrize("mode", ["latency", "throughput"])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_scores_are_numpys_whatever_the_turns(bundle, settings, monkeypatch, mode, n):
    monkeypatch.setattr(cpu, "CHUNK_PIXELS_TIMES_WIDTH", 7 * PATCH * PATCH)
    engine = open_openvino(bundle, settings.model_copy(update={"mode": mode}), quiet)
    assert_close(engine.score(some(n)), toy_scores(some(n)))
    engine.close()


def sizes_of(engine, n):
    """Sizes of the parts that the requests get for ``n`` patches, by request."""
    sizes = []

    class Recorder:
        def __init__(self, request, place):
            self._request, self._place = request, place

        def start_async(self, inputs, **options):
            sizes.append((self._place, len(inputs["patches"])))
            self._request.start_async(inputs, **options)

        def __getattr__(self, name):
            return getattr(self._request, name)

    engine._requests = [Recorder(request, place) for place, request in enumerate(engine._requests)]
    assert_close(engine.score(some(n)), toy_scores(some(n)))
    return sizes


def test_one_request_gets_equal_turns_and_never_more_than_a_chunk(bundle, settings, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_PIXELS_TIMES_WIDTH", 8 * PATCH * PATCH)
    engine = open_openvino(bundle, settings, quiet)
    assert sizes_of(engine, 20) == [(0, 7), (0, 7), (0, 7)]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has one stream")
def test_in_throughput_mode_requests_share_a_chunk_and_work_side_by_side(bundle, settings, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_PIXELS_TIMES_WIDTH", 8 * PATCH * PATCH)
    engine = open_openvino(bundle, settings.model_copy(update={"mode": "throughput"}), quiet)
    n_requests = len(engine._requests)
    assert n_requests == 2
    assert sizes_of(engine, 20) == [(turn % 2, 4) for turn in range(5)]
    assert sizes_of(engine, 6) == [(0, 3), (1, 3)]


def test_patches_may_be_a_view(bundle, settings):
    frame = RNG.integers(0, 256, (4, 2 * PATCH, 2 * PATCH, 3), dtype=np.uint8)
    view = frame[:, ::2, ::-2]
    assert_close(open_openvino(bundle, settings, quiet).score(view), toy_scores(view))


@pytest.mark.parametrize(
    "patches", [np.zeros((0, PATCH, PATCH, 3), np.uint8), np.zeros((1, PATCH, PATCH, 3), np.float32)]
)
def test_other_shapes_and_types_are_refused(bundle, settings, patches):
    with pytest.raises(ValueError, match=r"patches must be uint8 \(N, 16, 16, 3\) with N >= 1"):
        open_openvino(bundle, settings, quiet).score(patches)


def test_real_networks_score_as_on_onnxruntime_and_in_float64(real, settings):
    engine = open_engine(real, settings)
    assert engine.info.precision == "fp32"
    assert run_selftest(engine, real).worst < 1e-5
    patches = real.calibration_patches()
    mine, its = engine.score(patches), OnnxRuntimeEngine(real, EngineSettings(threads=1)).score(patches)
    for name in (*OUTPUTS, "anomaly_map"):
        difference = np.abs(getattr(mine, name) - getattr(its, name)).max()
        assert difference <= 1e-4 * np.abs(getattr(its, name)).max()
    engine.close()


def test_a_closed_engine_says_so(bundle, settings):
    engine = open_openvino(bundle, settings, quiet)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.score(some(1))


def test_after_a_failure_the_next_frame_is_scored(bundle, settings, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_PIXELS_TIMES_WIDTH", 4 * PATCH * PATCH)
    engine = open_openvino(bundle, settings.model_copy(update={"mode": "throughput"}), quiet)
    collect = engine._collect

    def fail(request, part, scores):
        collect(request, part, scores)
        raise RuntimeError("Exception from src/x.cpp:1:\nout of memory\n")

    monkeypatch.setattr(engine, "_collect", fail)
    with pytest.raises(BackendError, match=r"failed while scoring: out of memory"):
        engine.score(some(20))
    monkeypatch.setattr(engine, "_collect", collect)
    assert_close(engine.score(some(20)), toy_scores(some(20)))


def test_engines_of_several_threads_do_not_disturb_each_other(bundle, settings):
    ready = threading.Barrier(3)

    def work(seed):
        engine = open_openvino(bundle, settings, quiet)
        patches = np.random.default_rng(seed).integers(0, 256, (30, PATCH, PATCH, 3), dtype=np.uint8)
        ready.wait(60)
        for _ in range(20):
            assert_close(engine.score(patches), toy_scores(patches))
        engine.close()
        return engine.info.build_key

    with ThreadPoolExecutor(3) as pool:
        keys = list(pool.map(work, range(3)))
    assert keys == [only_entry(settings).manifest.facts.key] * 3


def test_an_engine_may_move_to_another_thread(bundle, settings):
    engine = open_openvino(bundle, settings, quiet)
    with ThreadPoolExecutor(1) as pool:
        assert_close(pool.submit(engine.score, some(5)).result(), toy_scores(some(5)))
    assert_close(engine.score(some(5)), toy_scores(some(5)))


# --- which precision serves ---


def test_it_says_what_it_is(bundle, settings):
    engine = open_openvino(bundle, settings.model_copy(update={"threads": 1}), quiet)
    info = engine.info
    assert (info.backend, info.backend_version, info.precision) == ("openvino", library.version(), "fp32")
    assert info.device == f"{cpu.cpu_name()}, threads: 1, latency"
    assert info.build_key == only_entry(settings).manifest.facts.key


def test_auto_takes_it_before_onnxruntime(bundle, settings):
    names = [backend.name for backend in installed_backends()]
    assert names[-2:] == ["openvino", "onnxruntime"]


@has_bf16
def test_bf16_is_asked_for_and_judged(real, settings):
    engine = open_engine(real, settings.model_copy(update={"precision": "bf16"}))
    assert engine.info.precision == "bf16"
    report = run_selftest(engine, real)
    assert 1e-5 < report.worst <= TOLERANCE["bf16"][report.worst_output]  # not fp32 under another name
    verdict = only_entry(settings).manifest.verdict
    assert verdict.accepted
    assert "ranks 40 calibration patches like fp32" in verdict.words


def test_int8_computes_convolutions_in_int8(real, settings):
    engine = open_engine(real, settings.model_copy(update={"precision": "int8"}))
    assert engine.info.precision == "int8"
    layers = only_entry(settings).manifest.inspection.layers
    kinds = {dtype for layer in layers if layer.kind == "Convolution" for dtype in layer.dtypes}
    assert kinds & {"int8", "uint8"}


def test_what_the_cpu_or_the_bundle_does_not_have_gives_way(bundle, settings, monkeypatch):
    monkeypatch.setattr(library, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    with capture_logs() as logs:
        engine = open_openvino(bundle, settings.model_copy(update={"precision": "int8"}), quiet)
    assert engine.info.precision == "fp32"
    gaps = [(log["precision"], log["event"]) for log in logs if log["log_level"] == "warning"]
    assert gaps == [
        ("int8", "the bundle has no graph for this precision; the next higher one is taken"),
        ("bf16", "this CPU is not made for this precision; the next higher one is taken"),
    ]


def test_a_graph_that_scores_otherwise_is_refused_now_and_ever_after(bundle, settings, monkeypatch):
    monkeypatch.setattr(library, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    spoiled = with_file(bundle, "scorer.int8.onnx", toy_scorer(PATCH, grey=40).SerializeToString())
    settings = settings.model_copy(update={"precision": "int8"})
    with capture_logs() as logs:
        engine = open_openvino(spoiled, settings, quiet)
    assert engine.info.precision == "fp32"
    (refusal,) = [log for log in logs if log["event"].startswith("this precision does not serve")]
    assert "self-test failed" in refusal["reason"]
    judged = []
    monkeypatch.setattr(gate, "judge_plan", lambda *given: judged.append(given))
    with capture_logs() as logs:
        assert open_openvino(spoiled, settings, quiet).info.precision == "fp32"
    assert judged == []
    (refusal,) = [log for log in logs if log["event"].startswith("this precision does not serve")]
    assert refusal["reason"].endswith("(found when the plan first ran)")


def test_where_ranks_are_lost_the_next_higher_precision_serves(real, settings, monkeypatch):
    judge = gate.judge_plan

    def strict(engine, bundle, precision):
        verdict = judge(engine, bundle, precision)
        return verdict if precision == "fp32" else Verdict(accepted=False, words="ranks unlike fp32")

    monkeypatch.setattr(gate, "judge_plan", strict)
    assert open_openvino(real, settings.model_copy(update={"precision": "int8"}), quiet).info.precision == "fp32"


def test_where_not_even_fp32_scores_rightly_nothing_serves(bundle, settings):
    wrong = replace(bundle, selftest=replace(bundle.selftest, expected=make_selftest(PATCH, grey=90).expected))
    with pytest.raises(SelfTestError, match=r"not even fp32 scores as the bundle says: .*Set engine\.backend"):
        open_openvino(wrong, settings, quiet)


# --- refused graphs ---


def unknown_operator(model):
    model.graph.node[0].op_type = "NoSuchOperator"


def broken_edge(model):
    model.graph.node[0].input[0] = "no such tensor"


@pytest.mark.parametrize("alter", [unknown_operator, broken_edge])
def test_a_graph_that_openvino_refuses_is_a_backend_error(bundle, settings, alter):
    model = toy_scorer(PATCH)
    alter(model)
    with pytest.raises(BackendError, match=r"scorer\.onnx: OpenVINO .*refuses the graph \("):
        open_openvino(with_file(bundle, "scorer.onnx", model.SerializeToString()), settings, quiet)


@pytest.mark.parametrize("scorer", [b"", b"no graph"])
def test_bytes_that_are_no_graph_are_a_backend_error(bundle, settings, scorer):
    with pytest.raises(BackendError):
        open_openvino(with_file(bundle, "scorer.onnx", scorer), settings, quiet)


def test_openvinos_own_format_is_refused(bundle, settings, tmp_path):
    """It would get past engines/graph.py, which knows ONNX only; Core.read_model takes it."""
    own = b'<?xml version="1.0"?><net name="own" version="11"><layers/><edges/></net>'
    assert library.core().read_model(own).get_friendly_name() == "own"
    with pytest.raises(BackendError, match="refuses the graph"):
        open_openvino(with_file(bundle, "scorer.onnx", own), settings, quiet)


def test_a_graph_of_another_patch_size_is_refused(bundle, settings):
    other = with_file(bundle, "scorer.onnx", toy_scorer(32).SerializeToString())
    with pytest.raises(BackendError, match=r"\(N, 32, 32, 3\), but the manifest says patches uint8 \(N, 16, 16, 3\)"):
        open_openvino(other, settings, quiet)


# --- the cache ---


@pytest.fixture
def compiled(monkeypatch):
    """Precisions that were compiled, in turn."""
    made = []
    real = models._compile
    monkeypatch.setattr(
        models,
        "_compile",
        lambda bundle, graph, precision, *rest: made.append(precision) or real(bundle, graph, precision, *rest),
    )
    return made


def test_the_second_time_nothing_is_compiled_or_judged(bundle, settings, compiled):
    heard = []
    open_engine(bundle, settings, lambda doing, share: heard.append(doing)).close()
    assert heard == ["compiling for this CPU in fp32", "judging fp32"]
    with capture_logs() as logs:
        engine = open_engine(bundle, settings, lambda *_: pytest.fail("something is built"))
    assert compiled == ["fp32"]
    assert [log["event"] for log in logs] == ["engine opened"]
    assert_close(engine.score(some(9)), toy_scores(some(9)))


def test_threads_and_mode_need_no_other_model(bundle, settings, compiled):
    for threads, mode in ((1, "latency"), (2, "throughput")):
        changes = {"threads": threads, "mode": mode}
        engine = open_openvino(bundle, settings.model_copy(update=changes), quiet)
        assert f"threads: {threads}, {mode}" in engine.info.device
    assert compiled == ["fp32"]


def test_another_version_cpu_or_graph_needs_another(bundle, settings, compiled, monkeypatch, tmp_path):
    open_openvino(bundle, settings, quiet)
    here = models.describe_device()
    for change in ({"version": "99.0"}, {"name": "Another CPU"}, {"capability": "FP32"}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, "describe_device", lambda change=change: here.model_copy(update=change))
            open_openvino(bundle, settings, quiet)
    open_openvino(make_bundle(tmp_path / "other", PATCH, grey=90), settings, quiet)
    assert len(compiled) == len(PlanCache(settings.cache).entries()) == 5


def test_an_altered_model_never_reaches_openvino(real, settings, compiled, monkeypatch):
    """OpenVINO itself would take one whose weights were altered."""
    patches = real.selftest.patches
    sound = open_openvino(real, settings, quiet).score(patches).residual
    entry = only_entry(settings)
    model = entry.path.read_bytes()
    altered = model[:4096] + bytes(4096) + model[8192:]  # weights, which come first
    taken = OpenVinoEngine(models.load_model(altered, "fp32", settings), entry.manifest.facts, real.manifest, "latency")
    assert not np.allclose(taken.score(patches).residual, sound)

    entry.path.write_bytes(altered)
    assert isinstance(only_entry(settings), Broken)
    loaded = []
    load = models.load_model
    monkeypatch.setattr("engines.openvino.backend.load_model", lambda *given: loaded.append(given[0]) or load(*given))
    with capture_logs() as logs:
        engine = open_openvino(real, settings, quiet)
    assert compiled == ["fp32", "fp32"]
    assert altered not in loaded
    assert "was altered" in logs[0]["reason"]
    np.testing.assert_allclose(engine.score(patches).residual, sound, rtol=1e-4, atol=1e-5)
    assert isinstance(only_entry(settings), Entry)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_model_cut_off_is_compiled_again(bundle, settings, compiled, size):
    open_openvino(bundle, settings, quiet)
    os.truncate(only_entry(settings).path, size)
    open_openvino(bundle, settings, quiet)
    assert compiled == ["fp32", "fp32"]


def test_a_model_of_another_secret_is_compiled_again(bundle, settings, compiled, tmp_path):
    other = settings.model_copy(update={"cache": tmp_path / "other"})
    open_openvino(bundle, other, quiet)
    open_openvino(bundle, settings, quiet)
    for path in other.cache.glob("*.[pj]*"):
        path.replace(settings.cache / path.name)
    assert isinstance(only_entry(settings), Broken)
    open_openvino(bundle, settings, quiet)
    assert len(compiled) == 3


@pytest.mark.parametrize("junk", [b"", b"junk" * 100])
def test_a_model_that_openvino_refuses_is_compiled_again(bundle, settings, compiled, junk):
    """As one might be that another build of the same version wrote."""
    open_openvino(bundle, settings, quiet)
    PlanCache(settings.cache).store(junk, only_entry(settings).manifest)
    with capture_logs() as logs:
        engine = open_openvino(bundle, settings, quiet)
    assert compiled == ["fp32", "fp32"]
    (log,) = [log for log in logs if log["event"] == "the plan is built again"]
    assert "refuses the compiled model" in log["reason"]
    assert_close(engine.score(some(3)), toy_scores(some(3)))


def test_a_folder_that_others_can_write_is_refused(bundle, settings):
    settings.cache.mkdir(mode=0o777)
    settings.cache.chmod(0o777)
    with pytest.raises(BackendError, match=r"somebody else could put plans there"):
        open_openvino(bundle, settings, quiet)
