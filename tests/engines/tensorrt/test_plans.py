"""Plans found or built, with NVIDIA's real builder."""

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from structlog.testing import capture_logs

from engines.cache import Entry, PlanCache
from engines.engine import EngineSettings
from engines.errors import BackendError
from engines.tensorrt import library, plans
from engines.tensorrt.plans import buildable, describe_device, find_graph, in_turns, obtain_plan, patches_at_once
from tests.support.bundles import make_bundle

pytestmark = pytest.mark.skipif(library.problem() is not None, reason="the extra 'tensorrt' is not installed")


def quiet(_doing, _share):
    pass


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("plans") / "toy", 16)


@pytest.fixture
def settings(tmp_path):
    return EngineSettings(cache=tmp_path / "plans", precision="fp32")


def with_graphs(bundle, **graphs):
    """The bundle with more graphs; the toy's fp32 graph stands for them, the types do not matter here."""
    files = {f"scorer.{precision}.onnx": graph for precision, graph in graphs.items()}
    return replace(bundle, files=MappingProxyType({**bundle.files, **files}))


def wide(manifest, width):
    return manifest.model_copy(update={"network": manifest.network.model_copy(update={"width": width})})


def test_built_once_and_found_afterwards(bundle, settings):
    with capture_logs() as logs:
        plan, entry = obtain_plan(bundle, settings, "fp32", quiet)
    assert [log["event"] for log in logs] == ["building a TensorRT plan", "built"]
    assert entry.manifest.bundle_sha256 == bundle.digest
    assert entry.manifest.verdict is None
    assert entry.path.read_bytes() == plan
    with capture_logs() as logs:
        again = obtain_plan(bundle, settings, "fp32", quiet)
    assert logs == []
    assert again == (plan, entry)


def test_an_altered_plan_is_built_again_and_the_log_says_why(bundle, settings):
    plan, entry = obtain_plan(bundle, settings, "fp32", quiet)
    entry.path.write_bytes(b"x" + plan[1:])
    with capture_logs() as logs:
        new, _ = obtain_plan(bundle, settings, "fp32", quiet)
    assert "was altered" in logs[0]["reason"]
    assert logs[0]["log_level"] == "warning"
    assert logs[1]["event"] == "building a TensorRT plan"
    assert isinstance(PlanCache(settings.cache).entries()[0], Entry)
    assert entry.path.read_bytes() == new


@pytest.mark.parametrize(
    "changes", [{"max_patches": 3}, {"workspace_mib": 64}], ids=["another number of patches", "another workspace"]
)
def test_what_was_asked_for_is_built(bundle, settings, changes):
    obtain_plan(bundle, settings, "fp32", quiet)
    _, entry = obtain_plan(bundle, settings.model_copy(update=changes), "fp32", quiet)
    assert {name: getattr(entry.manifest.facts, name) for name in changes} == changes
    assert len(PlanCache(settings.cache).entries()) == 2


def test_who_asks_for_no_number_of_patches_takes_the_newest_plan(bundle, settings):
    """What `station engine build --frame` or --config made for the camera serves calibrate, check and run."""
    _, first = obtain_plan(bundle, settings, "fp32", quiet)
    _, for_camera = obtain_plan(bundle, settings.model_copy(update={"max_patches": 7}), "fp32", quiet)
    assert first.manifest.facts.max_patches == 64
    assert obtain_plan(bundle, settings, "fp32", quiet)[1] == for_camera


def test_a_changed_bundle_gets_a_plan_of_its_own(bundle, settings, tmp_path):
    _, entry = obtain_plan(bundle, settings, "fp32", quiet)
    other = make_bundle(tmp_path / "other", 16, grey=90)
    assert obtain_plan(other, settings, "fp32", quiet)[1].path != entry.path


def test_another_device_gets_a_plan_of_its_own(bundle, settings, monkeypatch):
    _, entry = obtain_plan(bundle, settings, "fp32", quiet)
    here = describe_device()
    for change in ({"name": "Orin"}, {"version": "99.0"}, {"capability": "8.7"}):
        monkeypatch.setattr(plans, "describe_device", lambda change=change: here.model_copy(update=change))
        assert obtain_plan(bundle, settings, "fp32", quiet)[1].path != entry.path
    assert len(PlanCache(settings.cache).entries()) == 4


class StopError(Exception):
    pass


def test_a_cancelled_build_leaves_nothing_and_falls_off_the_lock(bundle, settings):
    def stop(_doing, _share):
        raise StopError

    with pytest.raises(StopError):
        obtain_plan(bundle, settings, "fp32", stop)
    assert [path.name for path in settings.cache.iterdir()] == ["lock"]
    obtain_plan(bundle, settings, "fp32", quiet)


def _hold_the_lock(folder, held, release):
    with PlanCache(folder).locked(lambda: None):
        held.set()
        release.wait(60)


def test_two_processes_build_one_plan(bundle, settings):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold_the_lock, args=(settings.cache, held, release))
    process.start()
    assert held.wait(60)
    heard = []

    def on_progress(doing, _share):
        heard.append(doing)
        release.set()

    obtain_plan(bundle, settings, "fp32", on_progress)
    process.join()
    assert heard[0] == "waiting for another process that builds"


def test_a_process_that_had_to_wait_takes_the_plan_that_the_other_built(bundle, settings):
    plan, entry = obtain_plan(bundle, settings, "fp32", quiet)
    for suffix in (".plan", ".json"):
        entry.path.with_suffix(suffix).rename(settings.cache / f"away{suffix}")
    asked = []

    class Cache(PlanCache):
        def locked(self, on_wait):
            for suffix in (".plan", ".json"):  # as the other process does while this one waits
                (settings.cache / f"away{suffix}").rename(entry.path.with_suffix(suffix))
            asked.append(True)
            return super().locked(on_wait)

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(plans, "open_cache", lambda settings: Cache(settings.cache))
        assert obtain_plan(bundle, settings, "fp32", quiet) == (plan, entry)
    assert asked
    assert logs == []


def _build_until_killed(path, folder, started):
    from engines.bundle import read_bundle

    def wait(_doing, _share):
        started.set()
        time.sleep(60)

    obtain_plan(read_bundle(path), EngineSettings(cache=folder), "fp32", wait)


def test_a_killed_build_leaves_nothing_and_no_lock(bundle, settings):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_build_until_killed, args=(bundle.path, settings.cache, started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join()
    assert [path.name for path in settings.cache.iterdir()] == ["lock"]
    obtain_plan(bundle, settings, "fp32", quiet)


def test_timings_go_from_build_to_build(bundle, settings, monkeypatch):
    given = []
    real = plans.build_plan

    def build(scorer, tensors, options, on_progress, timings):
        given.append(timings)
        return replace(real(scorer, tensors, options, on_progress, timings), timings=b"measured")

    monkeypatch.setattr(plans, "build_plan", build)
    obtain_plan(bundle, settings, "fp32", quiet)
    obtain_plan(bundle, settings, "fp32", quiet, rebuild=True)
    assert given == [b"", b"measured"]


def test_where_the_graph_decides_a_precision_needs_its_graph(bundle, settings, monkeypatch):
    monkeypatch.setattr(library, "typed_by_graph", lambda: True)
    assert find_graph(bundle, "fp32") == bundle.scorer
    assert find_graph(bundle, "fp16") is None
    full = with_graphs(bundle, fp16=b"half", int8=b"eighth")
    assert (find_graph(full, "fp16"), find_graph(full, "int8")) == (b"half", b"eighth")
    with pytest.raises(BackendError, match=r"has no graph for fp16, which TensorRT.* needs; export"):
        obtain_plan(bundle, settings, "fp16", quiet)


def test_where_flags_decide_fp16_is_built_from_the_fp32_graph(bundle, monkeypatch):
    monkeypatch.setattr(library, "typed_by_graph", lambda: False)
    full = with_graphs(bundle, fp16=b"half", int8=b"eighth")
    assert (find_graph(full, "fp16"), find_graph(full, "int8")) == (bundle.scorer, b"eighth")
    assert find_graph(bundle, "int8") is None


def test_missing_graphs_are_told_and_passed_over(bundle, monkeypatch):
    monkeypatch.setattr(library, "typed_by_graph", lambda: True)
    with capture_logs() as logs:
        assert buildable(with_graphs(bundle, fp16=b"half"), "int8") == ["fp16", "fp32"]
    assert [log["precision"] for log in logs] == ["int8"]
    with capture_logs() as logs:
        assert buildable(bundle, "fp32") == ["fp32"]
    assert logs == []


@pytest.mark.parametrize(
    ("width", "n", "at_once"), [(1, 300, 300), (16, 300, 300), (64, 300, 300), (256, 300, 150), (256, 257, 129)]
)
def test_turns_are_equal_and_fit_into_memory(bundle, width, n, at_once):
    manifest = wide(bundle.manifest, width)
    assert in_turns(manifest, n) == at_once
    assert at_once * width * 16 * 16 <= plans.MAX_PIXELS_TIMES_WIDTH


def test_patches_of_a_frame(bundle, tmp_path):
    assert patches_at_once(bundle.manifest, EngineSettings(max_patches=5)) == 5
    assert patches_at_once(bundle.manifest, EngineSettings()) == plans.DEFAULT_PATCHES
    fixed = make_bundle(tmp_path / "fixed", 16, frame_size=(40, 64))
    assert patches_at_once(fixed.manifest, EngineSettings()) == 12


def test_the_device_without_a_gpu():
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    device = describe_device()
    assert (device.library, device.version) == (library.name(), library.version())
    assert (device.name, device.capability) == ("none", "none")
