"""TensorRT on a real GPU: scores as ONNX Runtime's in all precisions, memory, neighbours, errors."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from engines.engine import EngineSettings
from engines.errors import BackendError, PlanError
from engines.opening import open_engine
from engines.ort import OnnxRuntimeEngine
from engines.selftest import OUTPUTS, TOLERANCE
from engines.tensorrt.gpu import GpuThread, cuda, describe_gpu
from engines.tensorrt.plans import find_graph, obtain_plan
from engines.tensorrt.runtime import SLOTS, Runner
from station.cli import app

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

MAX = 32
CALLS = int(os.environ.get("STATION_TEST_CALLS", "100000"))
MIB = 2**20


def make_settings(precision, cache):
    return EngineSettings(backend="tensorrt", precision=precision, max_patches=MAX, cache=cache)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


def build(bundle, precision, cache):
    if find_graph(bundle, precision) is None:
        pytest.skip(f"the bundle has no graph for {precision}")
    return obtain_plan(bundle, make_settings(precision, cache), precision, lambda _phase, _share: None)[0]


@pytest.fixture(scope="session", params=["fp32", "fp16", "int8"])
def precision(request):
    return request.param


@pytest.fixture(scope="session")
def plan(bundle, precision, cache):
    return build(bundle, precision, cache)


@pytest.fixture(scope="session")
def fp32_plan(bundle, cache):
    return build(bundle, "fp32", cache)


@pytest.fixture
def runner(plan):
    made = Runner(plan, MAX)
    yield made
    made.close()


@pytest.fixture
def patches(bundle):
    """More than fit at once: the self-test's, and each of them shifted and mirrored, so that no two are alike."""
    some = bundle.selftest.patches
    return np.concatenate([some, np.roll(some, 5, axis=1), some[:, ::-1], some[:, :, ::-1], np.roll(some, 9, axis=2)])


def check_equal(found, expected):
    for name in OUTPUTS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("n", [1, 15, MAX, MAX + 1, 80])
def test_scores_are_those_of_onnx_runtime(runner, bundle, patches, precision, n):
    reference = OnnxRuntimeEngine(bundle, EngineSettings())
    expected = reference.score(patches[:n])
    for _ in range(3):  # plain, recorded, replayed
        found = runner.score(patches[:n])
        for name in OUTPUTS:
            wanted = getattr(expected, name)
            largest = np.abs(getattr(bundle.selftest.expected, name)).max()
            assert np.abs(getattr(found, name) - wanted).max() <= TOLERANCE[precision] * largest, name
    reference.close()


def test_the_engine_passes_its_gate_in_the_precision_asked_for(bundle, precision, plan, cache):
    engine = open_engine(bundle, make_settings(precision, cache))
    assert engine.info.precision == precision
    assert engine.info.device == describe_gpu().name
    engine.close()


def test_a_replayed_graph_computes_what_plain_execution_does(plan, patches):
    plain, recorded = Runner(plan, MAX, cuda_graphs=False), Runner(plan, MAX)
    for n in (MAX, MAX, MAX, MAX, 7, 7, 7, 1, 80, 80, 80):
        check_equal(recorded.score(patches[:n]), plain.score(patches[:n]))
    assert recorded.graphs == SLOTS
    assert plain.graphs == 0
    recorded.close()
    plain.close()


def test_two_submissions_overlap_without_mixing(runner, patches):
    expected = [runner.score(patches[i : i + MAX]) for i in range(0, 48, 8)]
    under_way = []
    found = []
    for i in range(0, 48, 8):
        if len(under_way) == SLOTS:
            found.append(runner.result(under_way.pop(0)))
        under_way.append(runner.submit(patches[i : i + MAX]))
    found += [runner.result(submission) for submission in under_way]
    for one, other in zip(found, expected, strict=True):
        check_equal(one, other)


def free_memory():
    thread = GpuThread()
    try:
        return thread.run(lambda: cuda().mem_get_info()[0])
    finally:
        thread.close()


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_the_same_over_many_calls(fp32_plan, patches):
    """Sizes change now and then, so that graphs are dropped and recorded again."""
    runner = Runner(fp32_plan, MAX)
    sizes = (1, 4, MAX, 33)

    def call(n_calls):
        for i in range(n_calls):
            runner.score(patches[: sizes[i // 50 % len(sizes)]])

    call(1000)
    expected = runner.score(patches[:4])
    free, resident = free_memory(), resident_bytes()
    call(CALLS)
    # Others may use the GPU as well; a leak of one small buffer a graph would be hundreds of MiB by now.
    assert free - free_memory() < 64 * MIB
    assert resident_bytes() - resident < 32 * MIB
    check_equal(runner.score(patches[:4]), expected)
    runner.close()


def test_opening_and_closing_leaves_nothing(fp32_plan, patches):
    def open_and_close():
        runner = Runner(fp32_plan, MAX)
        for _ in range(3):
            runner.score(patches[:MAX])
        runner.close()

    keep = GpuThread()  # or else the context goes with each runner, and all memory with it
    for _ in range(3):
        open_and_close()
    free = free_memory()
    for _ in range(20):
        open_and_close()
    assert free - free_memory() < 64 * MIB
    keep.close()


def test_two_engines_in_one_process(fp32_plan, plan, patches):
    one, two = Runner(fp32_plan, MAX), Runner(plan, MAX)
    expected = one.score(patches), two.score(patches)
    failures = []

    def work(runner, wanted):
        try:
            for _ in range(200):
                check_equal(runner.score(patches), wanted)
        except (AssertionError, BackendError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip((one, two), expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    one.close()
    check_equal(two.score(patches), expected[1])
    two.close()


def test_torch_may_use_the_same_gpu(fp32_plan, patches):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    runner = Runner(fp32_plan, MAX)
    expected = runner.score(patches)
    a = torch.ones(512, 512, device="cuda")
    for _ in range(20):
        assert float((a @ a)[0, 0]) == 512
        check_equal(runner.score(patches), expected)
    runner.close()
    assert float((a @ a)[0, 0]) == 512  # closing took nobody else's context away


def test_any_thread_may_score_and_close(fp32_plan, patches):
    runner = Runner(fp32_plan, MAX)
    expected, found = runner.score(patches), []
    for target in (lambda: found.append(runner.score(patches)), runner.close):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    check_equal(found[0], expected)
    with pytest.raises(BackendError, match="closed"):
        runner.score(patches)


@pytest.mark.parametrize("spoil", [lambda plan: plan[: len(plan) // 2], lambda plan: b"\x00" * len(plan)])
def test_what_is_no_plan_is_refused(fp32_plan, spoil):
    with pytest.raises(PlanError, match="refuses the plan"):
        Runner(spoil(fp32_plan), MAX)


def test_a_plan_for_fewer_patches_is_refused(fp32_plan):
    with pytest.raises(PlanError, match=f"built for 1 to {MAX} patches"):
        Runner(fp32_plan, MAX + 1)


def test_a_full_gpu_is_told_and_survived(fp32_plan, patches):
    if describe_gpu().integrated:
        pytest.skip("filling the memory that the CPU shares would end other processes")
    thread = GpuThread()
    allocations = []

    def fill():
        for size in (1024 * MIB, 64 * MIB, MIB):
            with suppress(cuda().MemoryError):
                while True:
                    allocations.append(cuda().mem_alloc(size))

    def empty():
        while allocations:
            allocations.pop().free()

    thread.run(fill)
    try:
        with pytest.raises(BackendError, match=r"engine\.max_patches"):
            Runner(fp32_plan, MAX)
    finally:
        thread.run(empty)
        thread.close()
    runner = Runner(fp32_plan, MAX)
    assert np.isfinite(runner.score(patches).residual).all()
    runner.close()


def test_station_bench_runs_on_it(bundle, cache, monkeypatch):
    monkeypatch.setenv("CACHE_DIRECTORY", str(cache))
    result = CliRunner().invoke(
        app, ["bench", "--bundle", str(bundle.path), "--engine", "tensorrt", "--frames", "20", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert '"backend": "tensorrt"' in result.stdout
