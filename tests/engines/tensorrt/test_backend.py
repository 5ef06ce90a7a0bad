"""The engine as a whole on the recording double of a GPU; the builder's part is played by a double too."""

import sys
from dataclasses import replace
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
from structlog.testing import capture_logs

from engines import gate
from engines.cache import Entry, Inspection, PlanCache, Verdict
from engines.engine import EngineSettings
from engines.errors import BackendError, SelfTestError
from engines.opening import installed_backends, open_engine, tensorrt_problem
from engines.selftest import OUTPUTS
from engines.tensorrt import backend, cuda_graph, gpu, library, plans
from engines.tensorrt.builder import Built
from tests.support.bundles import make_bundle, make_selftest, toy_scores
from tests.support.gpu_double import GpuDouble, make_plan

PATCH = 16


class BuilderDouble:
    """Double of build_plan: plans that the GPU's double can load; ``damaged`` ones it cannot."""

    def __init__(self):
        self.built = []
        self.damaged = False

    def __call__(self, scorer, tensors, options, on_progress, timings):
        self.built.append((options.precision, options.max_patches))
        on_progress("building", 1.0)
        plan = b"no plan" if self.damaged else make_plan(PATCH, options.max_patches)
        return Built(plan, Inspection(tensors=(), patches=(1, options.max_patches, options.max_patches), layers=()))


@pytest.fixture
def double(monkeypatch):
    """The GPU's double in the place of the real libraries; at the end everything must have been freed."""
    made = GpuDouble()
    package = ModuleType("pycuda")
    package.driver = made.driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", made.driver)
    monkeypatch.setattr(library, "trt", lambda: made.tensorrt)
    monkeypatch.setattr(library, "typed_by_graph", lambda: True)
    monkeypatch.setattr(cuda_graph, "_driver", lambda: made.libcuda)
    gpu.cuda.cache_clear()
    yield made
    gpu.cuda.cache_clear()
    assert made.memory == {}
    assert made.retained == 0
    assert made.violations == []


@pytest.fixture
def builder(monkeypatch):
    made = BuilderDouble()
    monkeypatch.setattr(plans, "build_plan", made)
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    made = make_bundle(tmp_path_factory.mktemp("backend") / "toy", PATCH)
    graphs = {"scorer.fp16.onnx": b"fp16", "scorer.int8.onnx": b"int8"}
    return replace(made, files=MappingProxyType({**made.files, **graphs}))


@pytest.fixture
def settings(tmp_path):
    return EngineSettings(cache=tmp_path / "plans", max_patches=4)


def events(logs):
    return [log["event"] for log in logs]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.usefixtures("double")
def test_from_a_bundle_to_scores(builder, bundle, settings, precision):
    settings = settings.model_copy(update={"precision": precision})
    heard = []
    engine = open_engine(bundle, settings, lambda doing, share: heard.append((doing, share)))
    try:
        assert heard == [("building", 1.0)]
        info = engine.info
        assert (info.backend, info.backend_version, info.precision) == ("tensorrt", "TensorRT 10.3.0", precision)
        assert info.device == gpu.describe_gpu().name
        patches = np.random.default_rng(1).integers(0, 256, (11, PATCH, PATCH, 3), dtype=np.uint8)
        scores = engine.score(patches)
        for name in OUTPUTS:
            np.testing.assert_allclose(getattr(scores, name), getattr(toy_scores(patches), name), rtol=1e-5)
    finally:
        engine.close()
        engine.close()
    (entry,) = PlanCache(settings.cache).entries()
    assert info.build_key == entry.manifest.facts.key == entry.path.stem
    assert entry.manifest.verdict.accepted


@pytest.mark.usefixtures("double")
def test_the_second_time_nothing_is_built_or_judged(builder, bundle, settings):
    open_engine(bundle, settings).close()
    with capture_logs() as logs:
        open_engine(bundle, settings).close()
    assert builder.built == [("fp16", 4)]
    assert events(logs) == ["engine opened"]


@pytest.mark.usefixtures("double")
def test_a_precision_that_fails_the_gate_gives_way_now_and_ever_after(builder, bundle, settings, monkeypatch):
    judged = []

    def judge(engine, bundle, precision):
        judged.append(precision)
        return Verdict(accepted=precision == "fp32", words=f"{precision} was judged")

    monkeypatch.setattr(gate, "judge_plan", judge)
    settings = settings.model_copy(update={"precision": "int8"})
    with capture_logs() as logs:
        engine = open_engine(bundle, settings)
    engine.close()
    assert engine.info.precision == "fp32"
    assert judged == ["int8", "fp16", "fp32"]
    refusals = [log for log in logs if log["event"].startswith("this precision does not serve")]
    assert [(log["precision"], log["reason"]) for log in refusals] == [
        ("int8", "int8 was judged"),
        ("fp16", "fp16 was judged"),
    ]
    with capture_logs() as logs:
        open_engine(bundle, settings).close()
    assert judged == ["int8", "fp16", "fp32"]
    assert len(builder.built) == 3
    assert "int8 was judged (found when the plan first ran)" in {log.get("reason") for log in logs}


@pytest.mark.usefixtures("double", "builder")
def test_where_not_even_fp32_scores_rightly_nothing_serves(bundle, settings):
    wrong = replace(bundle, selftest=replace(bundle.selftest, expected=make_selftest(PATCH, grey=90).expected))
    with pytest.raises(SelfTestError, match=r"not even fp32 scores as the bundle says: .*Set engine\.backend"):
        open_engine(wrong, settings)


@pytest.mark.usefixtures("double")
def test_a_plan_that_tensorrt_refuses_is_built_again(builder, bundle, settings):
    """As after a change of the driver, which the key does not tell."""
    builder.damaged = True
    plans.obtain_plan(bundle, settings, "fp16", lambda *_: None)
    builder.damaged = False
    with capture_logs() as logs:
        open_engine(bundle, settings).close()
    assert len(builder.built) == 2
    (log,) = [log for log in logs if log["event"] == "the plan is built again"]
    assert "Magic tag does not match" in log["reason"]


@pytest.mark.usefixtures("double")
def test_if_that_does_not_help_the_reason_is_told(builder, bundle, settings):
    builder.damaged = True
    with pytest.raises(BackendError, match="Magic tag does not match"):
        open_engine(bundle, settings)
    assert len(builder.built) == 2


@pytest.mark.usefixtures("builder")
def test_a_plan_is_not_built_again_for_want_of_memory(double, builder, bundle, settings):
    open_engine(bundle, settings).close()
    double.fail("create_execution_context", "failed")
    with pytest.raises(BackendError, match="memory"):
        open_engine(bundle, settings)
    assert len(builder.built) == 1


@pytest.mark.usefixtures("double", "builder")
def test_an_altered_plan_never_reaches_tensorrt(double, bundle, settings):
    open_engine(bundle, settings).close()
    (entry,) = PlanCache(settings.cache).entries()
    entry.path.write_bytes(make_plan(PATCH, 9))  # as good a plan, but not the one that was built
    loaded = []
    real = backend.Runner

    def runner(plan, max_patches):
        loaded.append(plan)
        return real(plan, max_patches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "Runner", runner)
        open_engine(bundle, settings).close()
    assert loaded == [make_plan(PATCH, 4)]
    assert isinstance(PlanCache(settings.cache).entries()[0], Entry)


@pytest.mark.usefixtures("double", "builder")
def test_a_failing_gate_frees_the_gpu(bundle, settings, monkeypatch):
    def fail(engine, bundle, precision):
        raise BackendError("the GPU fell off the bus")

    monkeypatch.setattr(gate, "judge_plan", fail)
    with pytest.raises(BackendError, match="fell off the bus"):
        open_engine(bundle, settings)


@pytest.mark.usefixtures("double")
def test_auto_takes_tensorrt_where_there_is_a_gpu():
    assert tensorrt_problem() is None
    assert next(installed_backends()).name == "tensorrt"


@pytest.mark.usefixtures("double")
def test_auto_leaves_alone_a_gpu_that_the_library_refuses(bundle, settings, monkeypatch):
    monkeypatch.setattr(library, "refused_gpu", lambda capability: f"not on {capability}")
    first = next(installed_backends()).name
    assert first != "tensorrt"
    engine = open_engine(bundle, settings.model_copy(update={"precision": "fp32"}))
    assert engine.info.backend == first
    engine.close()
    with pytest.raises(BackendError, match=r"tensorrt, which cannot run here: not on \(8, 7\)"):
        open_engine(bundle, settings.model_copy(update={"backend": "tensorrt"}))


def test_asking_for_tensorrt_without_a_gpu_says_what_is_missing(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    gpu.cuda.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"engine\.backend is tensorrt, which cannot run here: pycuda"):
            open_engine(bundle, EngineSettings(backend="tensorrt"))
    finally:
        gpu.cuda.cache_clear()
