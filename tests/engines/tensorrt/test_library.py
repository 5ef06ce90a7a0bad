"""Against the real TensorRT-RTX, and named doubles of the versions that cannot be installed beside it."""

import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import pytest

from engines.errors import BackendError
from engines.tensorrt import library


class ConfigDouble:
    def __init__(self):
        self.flags = {"TF32"}

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)


class LayerDouble:
    def __init__(self, kind):
        self.type = kind
        self.precision = None
        self.output_types = {}

    def set_output_type(self, index, dtype):
        self.output_types[index] = dtype


class NetworkDouble:
    def __init__(self):
        self.layers = [LayerDouble("CONVOLUTION"), LayerDouble("REDUCE")]
        self.num_layers = len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


def make_double(version, network_flags, builder_flags, *, monitor, name="tensorrt"):
    """A double of NVIDIA's module: the names that its Python bindings' source has at this version, no behaviour."""
    module = ModuleType(name)
    module.__version__ = version
    module.Builder = object
    module.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", network_flags)
    module.BuilderFlag = SimpleNamespace(**{flag: flag for flag in builder_flags})
    module.LayerType = SimpleNamespace(REDUCE="REDUCE")
    module.DataType = SimpleNamespace(FLOAT="FLOAT")
    if monitor:
        module.IProgressMonitor = object
    return module


OLD_FLAGS = ["FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS"]
DOUBLES = {
    "8.6.1": make_double("8.6.1", {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}, OLD_FLAGS, monitor=False),
    "10.3.0": make_double("10.3.0", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, OLD_FLAGS, monitor=True),
    "10.16.1": make_double("10.16.1", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, OLD_FLAGS, monitor=True),
    "11.4.1": make_double("11.4.1", {"STRONGLY_TYPED": 0}, ["TF32"], monitor=True),
    "rtx": make_double("1.7.1.116", {"STRONGLY_TYPED": 0}, ["TF32"], monitor=True, name="tensorrt_rtx"),
}


@pytest.fixture
def pretend(monkeypatch):
    def replace(which):
        monkeypatch.setattr(library, "trt", lambda: DOUBLES[which])

    return replace


@pytest.mark.parametrize(("which", "flags"), [("8.6.1", 1), ("10.3.0", 0), ("10.16.1", 0), ("11.4.1", 0), ("rtx", 0)])
def test_only_8_has_to_be_asked_for_dynamic_shapes(pretend, which, flags):
    pretend(which)
    assert library.network_flags() == flags


@pytest.mark.parametrize(
    ("which", "by_graph"), [("8.6.1", False), ("10.3.0", False), ("10.16.1", False), ("11.4.1", True), ("rtx", True)]
)
def test_from_11_on_and_for_rtx_the_graph_decides_the_types(pretend, which, by_graph):
    pretend(which)
    assert library.typed_by_graph() is by_graph


OBEY = "OBEY_PRECISION_CONSTRAINTS"


@pytest.mark.parametrize("which", ["8.6.1", "10.3.0", "10.16.1"])
@pytest.mark.parametrize(
    ("precision", "flags"),
    [("fp32", set()), ("fp16", {"TF32", "FP16", OBEY}), ("int8", {"TF32", "FP16", "INT8", OBEY})],
)
def test_flags_allow_a_precision_before_11_but_not_for_sums(pretend, which, precision, flags):
    pretend(which)
    config, network = ConfigDouble(), NetworkDouble()
    library.set_precision(config, network, precision)
    assert config.flags == flags
    convolution, reduce = network.layers
    assert (convolution.precision, convolution.output_types) == (None, {})
    assert (reduce.precision, reduce.output_types) == ((None, {}) if precision == "fp32" else ("FLOAT", {0: "FLOAT"}))


@pytest.mark.parametrize("which", ["11.4.1", "rtx"])
@pytest.mark.parametrize(("precision", "flags"), [("fp32", set()), ("fp16", {"TF32"}), ("int8", {"TF32"})])
def test_flags_leave_types_alone_where_the_graph_decides(pretend, which, precision, flags):
    pretend(which)
    config, network = ConfigDouble(), NetworkDouble()
    library.set_precision(config, network, precision)
    assert config.flags == flags
    assert all(layer.precision is None for layer in network.layers)


@pytest.mark.parametrize(("which", "has"), [("8.6.1", True), ("10.3.0", True), ("11.4.1", True), ("rtx", False)])
def test_rtx_keeps_no_timings(pretend, which, has):
    pretend(which)
    assert library.has_timing_cache() is has


def test_8_has_no_progress_monitor(pretend):
    pretend("8.6.1")
    assert library.make_progress_monitor(print, print, print) is None


class EngineDouble:
    """Double of ICudaEngine that remembers how its context was asked for."""

    def create_runtime_config(self):
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="LAZY")

    def create_execution_context(self, *arguments):
        return ("context", *arguments)


def test_rtx_finishes_its_kernels_before_the_first_scores(pretend, monkeypatch):
    pretend("rtx")
    strategies = SimpleNamespace(EAGER="EAGER")
    monkeypatch.setattr(DOUBLES["rtx"], "DynamicShapesKernelSpecializationStrategy", strategies, raising=False)
    _, config = library.create_context(EngineDouble())
    assert config.dynamic_shapes_kernel_specialization_strategy == "EAGER"


def test_the_real_rtx_has_what_a_context_is_asked_for_with():
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert isinstance(trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy, property)
    assert callable(trt.ICudaEngine.create_runtime_config)
    assert callable(trt.IExecutionContext.is_stream_capturable)


@pytest.mark.parametrize("which", ["8.6.1", "10.3.0", "11.4.1"])
def test_elsewhere_a_context_needs_nothing(pretend, which):
    pretend(which)
    assert library.create_context(EngineDouble()) == ("context",)


def test_where_the_version_cannot_tell_one_tries_to_record():
    assert library.can_record(SimpleNamespace(), 7)
    assert library.can_record(SimpleNamespace(is_stream_capturable=lambda stream: stream == 7), 7)
    assert not library.can_record(SimpleNamespace(is_stream_capturable=lambda stream: stream != 7), 7)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1), (13, 0)])
def test_the_real_rtx_runs_on_the_gpus_that_it_names_and_on_newer_ones(monkeypatch, capability):
    monkeypatch.setattr(library, "trt", lambda: pytest.importorskip("tensorrt_rtx"))
    assert library.refused_gpu(capability) is None


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 7), (9, 0), (10, 0)])
def test_the_real_rtx_does_not_run_on_others(monkeypatch, capability):
    monkeypatch.setattr(library, "trt", lambda: pytest.importorskip("tensorrt_rtx"))
    major, minor = capability
    assert f"compute capability {major}.{minor}, only of 8.0, 8.6, 8.9, 12.0" in library.refused_gpu(capability)


def test_tensorrt_itself_is_asked_by_running_it(pretend):
    pretend("10.3.0")
    assert library.refused_gpu((9, 0)) is None


@pytest.mark.parametrize(("which", "name"), [("10.3.0", "TensorRT"), ("rtx", "TensorRT-RTX")])
def test_names(pretend, which, name):
    pretend(which)
    assert library.name() == name
    assert library.version() == DOUBLES[which].__version__
    assert library.is_rtx() == (which == "rtx")


class OldParserError:
    """Double of 8.6's IParserError, which knows no names."""

    def node(self):
        return 12

    def desc(self):
        return "Unsupported\n   operator"


class NewParserError(OldParserError):
    """Double of 10's."""

    def node_name(self):
        return "resize_3"

    def node_operator(self):
        return "Resize"


def test_a_parsers_error_names_node_operator_and_reason():
    assert library.describe_parser_error(OldParserError()) == "node 12: Unsupported operator"
    assert library.describe_parser_error(NewParserError()) == "node 12 (Resize 'resize_3'): Unsupported operator"


@pytest.fixture
def fresh(monkeypatch):
    """Modules as each test puts them into sys.modules; what was found before is forgotten, also afterwards."""
    library._find.cache_clear()
    yield monkeypatch
    library._find.cache_clear()


def test_tensorrt_goes_before_tensorrt_rtx(fresh):
    fresh.setitem(sys.modules, "tensorrt", DOUBLES["10.3.0"])
    fresh.setitem(sys.modules, "tensorrt_rtx", DOUBLES["rtx"])
    assert library.trt() is DOUBLES["10.3.0"]
    assert library.problem() is None


def test_an_empty_folder_called_tensorrt_is_passed_over(fresh):
    fresh.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    fresh.setitem(sys.modules, "tensorrt_rtx", DOUBLES["rtx"])
    assert library.trt() is DOUBLES["rtx"]


def test_an_old_tensorrt_is_refused(fresh):
    fresh.setitem(sys.modules, "tensorrt", make_double("8.5.2", {}, [], monitor=False))
    fresh.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"tensorrt 8\.5\.2 is older than 8\.6"):
        library.trt()


def test_nothing_installed_says_what_to_install(fresh):
    fresh.setattr(library, "MODULES", ("no_such_tensorrt",))
    with pytest.raises(BackendError, match=r"no_such_tensorrt is not installed\. JetPack .*pip install"):
        library.trt()


def test_a_library_that_does_not_load_says_why(fresh, tmp_path):
    (tmp_path / "broken_tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    fresh.syspath_prepend(str(tmp_path))
    fresh.setattr(library, "MODULES", ("broken_tensorrt",))
    assert library.problem() == ("broken_tensorrt cannot be loaded (libnvinfer.so.10: cannot open shared object file)")


# --- the real one ---


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt' is not installed")


@pytest.mark.usefixtures("rtx")
def test_the_real_library_is_found_and_has_all_that_is_used():
    assert library.problem() is None
    assert library.name() in ("TensorRT", "TensorRT-RTX")
    assert library.network_flags() in (0, 1)
    monitor = library.make_progress_monitor(print, print, print)
    assert monitor is not None
    assert library.logger() is library.logger()


@pytest.mark.usefixtures("rtx")
def test_the_transcript_keeps_errors_of_the_real_library():
    runtime = library.trt().Runtime(library.logger())
    with library.transcript() as heard:
        assert runtime.deserialize_cuda_engine(b"no plan") is None
    assert heard.errors
    assert heard.reason() == "; ".join(heard.errors)
    with library.transcript() as later:
        pass
    assert later.errors == []
    assert later.reason() == "it gave no reason"
