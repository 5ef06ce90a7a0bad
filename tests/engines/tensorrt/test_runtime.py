"""The run path against a recording double of pycuda, libcuda and TensorRT; tests/gpu runs it on the real ones."""

import sys
import threading
from types import ModuleType

import numpy as np
import pytest
from structlog.testing import capture_logs

from engines.errors import BackendError, PlanError
from engines.tensorrt import cuda_graph, gpu, library
from engines.tensorrt.runtime import SLOTS, Runner
from tests.support import gpu_double
from tests.support.bundles import toy_scores
from tests.support.gpu_double import (
    MAPPED_AT,
    OUT_OF_MEMORY,
    STREAM_CAPTURE_INVALIDATED,
    GpuDouble,
    LaunchError,
    MemoryError,  # noqa: A004 - pycuda's name
    make_module,
    make_plan,
)

PATCH = 16
MAX = 4
PLAN = make_plan(PATCH, MAX)
GRAPH_LAUNCH = ["cuGraphLaunch", "Event.record"]
PLAIN_LAUNCH = ["htod", "execute", "dtoh", "dtoh", "dtoh", "Event.record"]


def install(double, monkeypatch):
    package = ModuleType("pycuda")
    package.driver = double.driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", double.driver)
    monkeypatch.setattr(library, "trt", lambda: double.tensorrt)
    monkeypatch.setattr(cuda_graph, "_driver", lambda: double.libcuda)
    gpu.cuda.cache_clear()


def check_nothing_is_left(double):
    assert double.memory == {}
    assert double.graphs == {}
    assert {name: n for name, n in double.living.items() if n} == {}
    assert double.retained == 0
    assert not any(double.stacks.values())


@pytest.fixture(params=[False, True], ids=["own memory", "shared memory"])
def double(request, monkeypatch):
    """Installed in the place of the real libraries; at the end, everything must have been freed, by the rules."""
    made = GpuDouble(integrated=request.param)
    install(made, monkeypatch)
    yield made
    gpu.cuda.cache_clear()
    check_nothing_is_left(made)
    assert made.violations == []


@pytest.fixture
def discrete(monkeypatch):
    made = GpuDouble()
    install(made, monkeypatch)
    yield made
    gpu.cuda.cache_clear()
    check_nothing_is_left(made)
    assert made.violations == []


@pytest.fixture
def runner(double):
    made = Runner(PLAN, MAX)
    yield made
    made.close()


def random_patches(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, PATCH, PATCH, 3), dtype=np.uint8)


def check(scores, patches):
    expected = toy_scores(patches)
    for name in ("reconstruction_error", "feature_error", "residual"):
        found = getattr(scores, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, getattr(expected, name), rtol=1e-6)


def since(double, n):
    """Calls after the first ``n``, without the context's comings and goings."""
    return [call for call in double.names()[n:] if call != "push"]


@pytest.mark.parametrize("n", [1, MAX - 1, MAX, MAX + 1, 2 * MAX, 2 * MAX + 1, 5 * MAX + 3])
def test_any_number_of_patches_is_scored(runner, n):
    patches = random_patches(n)
    for _ in range(4):  # plain, recorded, replayed
        check(runner.score(patches), patches)


def test_different_numbers_follow_one_another(runner):
    for seed, n in enumerate([4, 4, 4, 1, 1, 1, 4, 3, 3, 9, 9, 1]):
        patches = random_patches(n, seed)
        check(runner.score(patches), patches)


def test_the_gpu_is_asked_for_in_this_order(discrete):
    runner = Runner(PLAN, MAX)
    patches = random_patches(3)
    discrete.calls.clear()
    runner.score(patches)
    assert since(discrete, 0) == ["set_input_shape", *PLAIN_LAUNCH, "Event.synchronize"]
    assert discrete.calls[1] == ("set_input_shape", "patches", (3, PATCH, PATCH, 3))
    runner.close()


def test_addresses_and_sizes(discrete):
    runner = Runner(PLAN, MAX)
    addresses = {name: address for _, name, address in (c for c in discrete.calls if c[0] == "set_tensor_address")}
    host = [c[1:3] for c in discrete.calls if c[0] == "pagelocked_empty"]
    assert host == SLOTS * [
        ((MAX, PATCH, PATCH, 3), "uint8"),
        ((MAX,), "float32"),
        ((MAX,), "float32"),
        ((MAX, PATCH, PATCH), "float32"),
    ]
    assert [c[1] for c in discrete.calls if c[0] == "mem_alloc"] == SLOTS * [
        MAX * PATCH * PATCH * 3,
        MAX * 4,
        MAX * 4,
        MAX * PATCH * PATCH * 4,
    ]
    discrete.calls.clear()
    submissions = [runner.submit(random_patches(2)) for _ in range(SLOTS)]
    for submission in submissions:
        runner.result(submission)
    copies = [c for c in discrete.calls if c[0] in ("htod", "dtoh")]
    # Only what the two patches need is copied, between the addresses that TensorRT was told.
    assert [c[4] for c in copies] == SLOTS * [2 * PATCH * PATCH * 3, 2 * 4, 2 * 4, 2 * PATCH * PATCH * 4]
    assert [c[2] for c in copies[4:]] == list(addresses.values())  # the last context's
    assert len({c[2] for c in copies}) == SLOTS * 4
    runner.close()


def test_on_shared_memory_nothing_is_copied(monkeypatch):
    double = GpuDouble(integrated=True)
    install(double, monkeypatch)
    runner = Runner(PLAN, MAX)
    patches = random_patches(MAX)
    check(runner.score(patches), patches)
    assert not {"htod", "dtoh", "mem_alloc"} & set(double.names())
    assert all(c[3] == 2 for c in double.calls if c[0] == "pagelocked_empty")  # DEVICEMAP
    assert all(c[2] >= MAPPED_AT for c in double.calls if c[0] == "set_tensor_address")
    runner.close()
    assert double.violations == []


def test_the_second_run_of_a_number_is_recorded_and_later_ones_replayed(discrete):
    runner = Runner(PLAN, MAX)
    steps = []
    for seed in range(4):
        discrete.calls.clear()
        patches = random_patches(3, seed)
        check(runner.score(patches), patches)
        steps.append(since(discrete, 0))
    assert steps[0] == ["set_input_shape", *PLAIN_LAUNCH, "Event.synchronize"]
    assert steps[1] == [
        "cuStreamBeginCapture_v2",
        *PLAIN_LAUNCH[:-1],
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
        *GRAPH_LAUNCH,
        "Event.synchronize",
    ]
    assert steps[2] == steps[3] == [*GRAPH_LAUNCH, "Event.synchronize"]
    assert runner.graphs == 1
    runner.close()


def test_a_graph_is_dropped_before_its_context_learns_another_shape(discrete):
    runner = Runner(PLAN, MAX)
    for _ in range(3):
        runner.score(random_patches(3))
    discrete.calls.clear()
    patches = random_patches(2)
    check(runner.score(patches), patches)
    assert since(discrete, 0) == ["cuGraphExecDestroy", "set_input_shape", *PLAIN_LAUNCH, "Event.synchronize"]
    assert runner.graphs == 0
    runner.close()


def test_turns_of_one_frame_have_one_size(discrete):
    """Or else every frame would need other graphs."""
    runner = Runner(PLAN, MAX)
    patches = random_patches(2 * MAX + 2)  # 10 in turns of 4
    for _ in range(5):
        check(runner.score(patches), patches)
    assert [c[2][0] for c in discrete.calls if c[0] == "set_input_shape"] == [4, 4]
    assert runner.graphs == SLOTS
    runner.close()


def test_without_graphs_every_run_is_plain(discrete):
    runner = Runner(PLAN, MAX, cuda_graphs=False)
    for _ in range(3):
        check(runner.score(random_patches(3)), random_patches(3))
    assert "cuStreamBeginCapture_v2" not in discrete.names()
    assert discrete.names().count("execute") == 3
    runner.close()


@pytest.mark.parametrize(
    "failing", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "execute", None]
)
def test_what_cannot_be_recorded_runs_without_a_graph(discrete, failing):
    runner = Runner(PLAN, MAX)
    patches = random_patches(3)
    runner.score(patches)
    if failing is None:
        discrete.recordable = False
    else:
        discrete.fail(failing, STREAM_CAPTURE_INVALIDATED)
    with capture_logs() as logs:
        for _ in range(3):
            check(runner.score(patches), patches)
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert "no CUDA graph" in warning["event"]
    assert runner.graphs == 0
    assert discrete.names().count("cuStreamBeginCapture_v2") <= 1  # it is not tried again
    runner.close()


def test_two_submissions_are_under_way_at_once(discrete):
    runner = Runner(PLAN, MAX)
    first, second = random_patches(3, 1), random_patches(2, 2)
    one, two = runner.submit(first), runner.submit(second)
    with pytest.raises(RuntimeError, match="collect a result first"):
        runner.submit(first)
    check(runner.result(two), second)
    check(runner.result(one), first)
    assert len({call[1] for call in discrete.calls if call[0] == "execute"}) == SLOTS  # streams
    runner.close()


def test_patches_may_change_once_they_are_submitted(runner):
    patches = random_patches(3)
    before = patches.copy()
    submission = runner.submit(patches)
    patches[:] = 0
    check(runner.result(submission), before)


def test_scores_are_the_callers_own(runner):
    first = random_patches(3, 1)
    scores = runner.score(first)
    runner.score(random_patches(3, 2))
    check(scores, first)


def test_patches_that_do_not_lie_in_one_piece(runner):
    patches = random_patches(6)[::2]
    assert not patches.flags.c_contiguous
    check(runner.score(patches), patches)


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((0, PATCH, PATCH, 3), np.uint8),
        np.zeros((1, PATCH, PATCH, 3), np.float32),
        np.zeros((1, PATCH, PATCH + 1, 3), np.uint8),
        np.zeros((PATCH, PATCH, 3), np.uint8),
    ],
    ids=["none", "float", "wide", "one"],
)
def test_other_arrays_are_refused(runner, patches):
    with pytest.raises(ValueError, match="patches must be uint8"):
        runner.score(patches)


def test_more_than_agreed_are_not_submitted(runner):
    with pytest.raises(ValueError, match="5 patches at once; the runner was opened for 4"):
        runner.submit(random_patches(MAX + 1))


def test_it_ends_in_reverse_order(discrete):
    runner = Runner(PLAN, MAX)
    for _ in range(2):
        runner.score(random_patches(3))
    discrete.calls.clear()
    runner.close()
    rest = [*4 * ["device free", "host free"], "~Event", "~Stream"]
    second = ["Event.synchronize", "~ExecutionContext", *rest]
    first = ["Event.synchronize", "cuGraphExecDestroy", "~ExecutionContext", "~Engine", "~Runtime", *rest]
    assert since(discrete, 0) == [*second, *first, "detach"]


def test_a_closed_runner_stays_closed(double):
    runner = Runner(PLAN, MAX)
    submission = runner.submit(random_patches(1))
    runner.close()
    calls = len(double.calls)
    runner.close()
    assert len(double.calls) == calls
    for use in (lambda: runner.score(random_patches(1)), lambda: runner.result(submission)):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_threads_may_change(double):
    runner = Runner(PLAN, MAX)
    patches = random_patches(3)
    scores = []
    for work in (lambda: scores.append(runner.score(patches)), runner.close):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    check(scores[0], patches)


def test_the_context_is_pushed_only_while_the_gpu_is_used(runner, double):
    """pycuda aborts the process when a thread ends with a context pushed, as threads do at the interpreter's exit."""
    runner.score(random_patches(1))
    assert not any(double.stacks.values())


def test_two_runners_in_one_process(double):
    one, two = Runner(PLAN, MAX), Runner(make_plan(PATCH, 2), 2)
    patches = random_patches(5)
    check(one.score(patches), patches)
    check(two.score(patches), patches)
    assert double.retained == 2
    one.close()
    check(two.score(patches), patches)
    two.close()


def test_memory_does_not_grow(runner, double):
    runner.score(random_patches(3))
    used, living = double.used(), dict(double.living)
    for i in range(300):
        runner.score(random_patches(1 + i // 3 % 9))
    assert double.used() == used
    assert double.living == living
    assert len(double.graphs) <= SLOTS


@pytest.mark.parametrize("at", range(1, 1 + SLOTS * 4))
@pytest.mark.parametrize("name", ["pagelocked_empty", "mem_alloc"])
def test_nothing_is_left_when_memory_runs_out(discrete, name, at):
    discrete.fail(name, MemoryError(OUT_OF_MEMORY), at)
    with pytest.raises(BackendError, match=r"MiB .* failed \(.*out of memory\); .*engine.max_patches"):
        Runner(PLAN, MAX)


@pytest.mark.parametrize("at", range(1, 1 + SLOTS))
def test_nothing_is_left_when_a_context_cannot_be_made(double, at):
    double.fail("create_execution_context", 1, at)
    with pytest.raises(BackendError, match=r"execution context .*engine.max_patches"):
        Runner(PLAN, MAX)


def test_a_refused_address(double):
    double.fail("set_tensor_address", 1, at=3)
    with pytest.raises(BackendError, match="refuses the address"):
        Runner(PLAN, MAX)


@pytest.mark.parametrize("n", [3, 2 * MAX, 3 * MAX])
@pytest.mark.parametrize("at", [1, 2])
def test_a_run_that_cannot_start_does_not_block_the_next(double, n, at):
    runner = Runner(PLAN, MAX)
    patches = random_patches(n)
    double.fail("execute", 1, at)
    if at <= -(-n // MAX):
        with pytest.raises(BackendError, match="TensorRT failed to start the engine"):
            runner.score(patches)
    double.fail("execute", None)
    check(runner.score(patches), patches)
    runner.close()


def test_an_error_of_the_gpu_says_what_to_do(double):
    runner = Runner(PLAN, MAX)
    double.fail("Event.synchronize", LaunchError("cuEventSynchronize failed: an illegal memory access"))
    with pytest.raises(BackendError, match=r"on the GPU failed \(.*illegal memory access\); .*restart the station"):
        runner.score(random_patches(1))
    runner.close()


def test_a_graph_that_does_not_start_says_what_to_do(double):
    runner = Runner(PLAN, MAX)
    for _ in range(2):
        runner.score(random_patches(1))
    double.fail("cuGraphLaunch", 719)
    with pytest.raises(BackendError, match=r"cuGraphLaunch failed: error 719 .*restart the station"):
        runner.score(random_patches(1))
    runner.close()


def test_an_error_while_closing_is_told_and_frees_the_rest(double):
    runner = Runner(PLAN, MAX)
    runner.score(random_patches(1))
    double.fail("Event.synchronize", LaunchError("cuEventSynchronize failed: unspecified launch failure"))
    with pytest.raises(BackendError, match="restart the station"):
        runner.close()


def test_what_is_no_plan_is_refused_with_tensorrts_reason(double):
    with pytest.raises(PlanError, match=r"TensorRT 10.3.0 refuses the plan \(Magic tag does not match\)"):
        Runner(b"\x00", MAX)


@pytest.mark.parametrize(
    "plan",
    [
        make_plan(PATCH, MAX, residual=("float16", (-1, PATCH, PATCH))),
        make_plan(PATCH, MAX, patches=("uint8", (-1, 3, PATCH, PATCH))),
        make_plan(PATCH, MAX, extra=("float32", (-1,))),
        make_plan(PATCH, MAX, patches=("uint8", (-1, 8, 8, 3))),
    ],
    ids=["half", "NCHW", "extra", "small"],
)
def test_a_plan_of_something_else_is_refused(double, plan):
    with pytest.raises(PlanError, match=r"not that of a scorer.*station engine build"):
        Runner(plan, MAX)


@pytest.mark.parametrize(("smallest", "largest"), [(1, MAX - 1), (2, MAX)])
def test_a_plan_for_other_numbers_is_refused(double, smallest, largest):
    with pytest.raises(PlanError, match=f"built for {smallest} to {largest} patches .* 1 to 4 are needed"):
        Runner(make_plan(PATCH, largest, min_patches=smallest), MAX)


@pytest.mark.parametrize("answer", [{"set_input_shape": False}, {"get_tensor_shape": (MAX + 1,)}])
def test_results_larger_than_their_buffers_are_never_computed(double, monkeypatch, answer):
    runner = Runner(PLAN, MAX)
    for method, value in answer.items():
        monkeypatch.setattr(gpu_double.ExecutionContext, method, lambda *_, value=value: value)
    with pytest.raises(BackendError, match="does not take 3 patches"):
        runner.score(random_patches(3))
    assert "execute" not in double.names()
    runner.close()


def test_no_patches_at_once_make_no_sense(double):
    with pytest.raises(ValueError, match="at least 1"):
        Runner(PLAN, 0)


def test_the_gpu_is_described(double):
    assert gpu.describe_gpu() == gpu.Gpu("Double", (8, 7), double.integrated, 8 * 2**30, (12, 6))


def test_without_pycuda_the_error_says_how_to_install_it(discrete, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendError, match=r"pycuda is not installed.*pip install pycuda"):
        Runner(PLAN, MAX)


def test_without_a_driver_the_error_names_it(discrete, monkeypatch):
    class MissingDriver:
        """What pycuda does on import where libcuda is missing."""

        def find_spec(self, name, *_):
            if name == "pycuda.driver":
                raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")

    package = make_module("pycuda", __path__=[])
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    monkeypatch.setattr(sys, "meta_path", [MissingDriver(), *sys.meta_path])
    with pytest.raises(BackendError, match=r"driver cannot be loaded \(libcuda.so.1.*nvidia-smi"):
        Runner(PLAN, MAX)


def test_without_a_gpu_the_error_says_so(discrete):
    discrete.n_devices = 0
    with pytest.raises(BackendError, match=r"there is no GPU.*--runtime nvidia"):
        Runner(PLAN, MAX)


def test_a_driver_that_fails_to_start_is_told(discrete):
    discrete.fail("init", LaunchError("cuInit failed: system has unsupported display driver / cuda driver combination"))
    with pytest.raises(BackendError, match=r"cannot be used .*unsupported display driver.*nvidia-smi"):
        Runner(PLAN, MAX)


def test_the_double_has_nothing_that_the_real_bindings_lack():
    trt = pytest.importorskip("tensorrt_rtx")
    for double, real in ((gpu_double.Runtime, trt.Runtime), (gpu_double.Engine, trt.ICudaEngine)):
        names = {name for name in vars(double) if not name.startswith("_")} - {"patch_size", "profile"}
        assert names <= set(dir(real))
    names = {name for name in vars(gpu_double.ExecutionContext) if not name.startswith("_")}
    assert names <= set(dir(trt.IExecutionContext))
    assert set(gpu_double.DataType.__members__) <= set(trt.DataType.__members__)
    assert set(gpu_double.TensorIOMode.__members__) <= set(trt.TensorIOMode.__members__)
    assert tuple(trt.Dims((-1, 3))) == (-1, 3)
    assert {trt.DataType.UINT8: 1}[trt.DataType.UINT8] == 1  # a key, as in runtime.py
