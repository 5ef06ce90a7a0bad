import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines.bundle import write_bundle
from engines.cache import DeviceFacts, Entry, PlanCache
from engines.cpu import cpu_name
from engines.engine import EngineSettings
from engines.errors import BackendError, BundleError
from engines.opening import installed_backends, open_engine
from engines.openvino import library as openvino_library
from engines.openvino import models
from engines.tensorrt import library
from station.cli import app
from station.commands import engine as command
from tests.support.bundles import make_bundle, make_description, make_selftest, toy_scorer


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "toy", 16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where plans go in these tests."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def station_engine(*arguments):
    return CliRunner().invoke(app, ["engine", *map(str, arguments)], env={"COLUMNS": "200"})


def test_list_without_a_bundle_shows_the_back_ends():
    result = station_engine("list")
    assert result.exit_code == 0
    first = next(installed_backends())
    lines = [line for line in result.output.splitlines() if "takes it" in line]
    assert [line.split()[0] for line in lines] == [first.name]
    assert any(line.startswith("onnxruntime") for line in result.output.splitlines())
    assert "bundle" not in result.output


def test_list_tells_what_the_bundle_is(bundle):
    result = station_engine("list", "--bundle", bundle.path)
    assert result.exit_code == 0
    for fact in (str(bundle.path), "toy, made 2024-01-01 00:00 UTC", bundle.digest, "16 x 16 pixels every 16"):
        assert fact in result.output


def test_verify_has_one_line_a_file_and_one_for_the_self_test(bundle):
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    backends = [backend.name for backend in installed_backends()]
    assert len(lines) == 4 + len(backends)
    assert all(line.startswith("ok ") for line in lines)
    assert f"ok manifest.json: schema 1, sha256 {bundle.digest}" in lines
    for name, sha256 in bundle.manifest.files.items():
        assert f"ok {name}: {len(bundle.files[name]):,} bytes, sha256 {sha256}" in lines
    for line, backend in zip(lines[4:], backends, strict=True):
        assert line.startswith(f"ok self-test on {backend} ")


def test_verify_fails_on_an_altered_bundle(bundle):
    os.truncate(bundle.path / "scorer.onnx", 100)
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert isinstance(result.exception, BundleError)  # station.cli.main makes one line of it


def test_verify_fails_on_an_engine_that_gives_other_scores(tmp_path):
    # A sound bundle, but the stored outputs are those of another grey level.
    good = make_bundle(tmp_path / "good", 16)
    wrong = replace(make_selftest(16), expected=make_selftest(16, grey=90).expected)
    description = make_description(good.manifest.preprocessing)
    bundle = write_bundle(tmp_path / "wrong", description, toy_scorer(16).SerializeToString(), wrong, "# Card")
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert "failed onnxruntime" in result.output.splitlines()[-1]
    assert "differs by" in result.output.splitlines()[-1]


def test_verify_names_a_graph_that_cannot_be_loaded(tmp_path):
    model = toy_scorer(16)
    model.graph.node[0].input[0] = "no such tensor"
    good = make_bundle(tmp_path / "good", 16)
    description = make_description(good.manifest.preprocessing)
    bundle = write_bundle(tmp_path / "odd", description, model.SerializeToString(), make_selftest(16), "# Card")
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert "refuses the graph" in result.output


@pytest.mark.parametrize(
    "arguments", [("--help",), ("list", "--help"), ("verify", "--help"), ("build", "--help"), ("prune", "--help")]
)
def test_help(arguments):
    result = station_engine(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output


# --- TensorRT plans: with NVIDIA's real builder, which as TensorRT-RTX needs no GPU ---

builds = pytest.mark.skipif(library.problem() is not None, reason="the extra 'tensorrt' is not installed")
no_gpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU, and the plan would run")


@pytest.fixture
def built(bundle):
    result = station_engine("build", "--bundle", bundle.path)
    assert result.exit_code == 0, result.output
    return result


def only_plan(cache):
    """TensorRT's; `verify` also has OpenVINO compile a model."""
    entries = PlanCache(cache).entries()
    (entry,) = [e for e in entries if not isinstance(e, Entry) or e.manifest.facts.device.library != "OpenVINO"]
    return entry


@builds
@no_gpu
def test_build_ends_with_a_plan_and_its_inspection_and_says_that_it_was_not_run(built, cache):
    entry = only_plan(cache)
    assert isinstance(entry, Entry)
    lines = {line[:12].strip(): line[12:] for line in built.output.splitlines() if not line.startswith("out")}
    assert lines["plan"] == str(entry.path)
    assert lines["size"].startswith(f"{entry.path.stat().st_size:,} bytes")
    assert lines["patches"] == "1 to 64 at once, best 64; more run in turns"
    assert lines["in"] == "patches uint8 (N, 16, 16, 3)"
    assert "out         residual float32 (N, 16, 16)" in built.output
    assert re.match(r"\d+: .*\d kgen", lines["layers"])
    assert "Built, not run. Loading a plan takes a GPU and NVIDIA's driver" in built.output
    assert "neither the self-test nor the ranks were checked" in built.output


@builds
@no_gpu
def test_a_second_build_takes_the_plan_that_is_there_and_again_makes_a_new_one(built, bundle, cache):
    first = only_plan(cache).path.stat()
    assert station_engine("build", "--bundle", bundle.path).exit_code == 0
    assert only_plan(cache).path.stat() == first
    assert station_engine("build", "--bundle", bundle.path, "--again").exit_code == 0
    assert only_plan(cache).path.stat().st_ino != first.st_ino


@builds
@no_gpu
def test_the_frames_size_decides_how_many_patches(bundle, cache):
    result = station_engine("build", "--bundle", bundle.path, "--frame", "70x32", "--precision", "fp32")
    assert result.exit_code == 0
    assert only_plan(cache).manifest.facts.max_patches == 10  # 5 across, the last overlapping; 2 down


@builds
@no_gpu
def test_the_settings_camera_region_and_cache_decide(bundle, tmp_path, cache):
    config = tmp_path / "station.toml"
    config.write_text(
        'bundle = "toy"\n[camera]\nurl = "demo:brick"\nroi = {x = 0, y = 0, width = 48, height = 16}\n'
        '[judge]\nthreshold = 1.0\n[engine]\ncache = "plans"\nprecision = "fp32"\nworkspace_mib = 32\n'
    )
    result = station_engine("build", "--config", config)
    assert result.exit_code == 0, result.output
    facts = only_plan(tmp_path / "plans").manifest.facts
    assert (facts.max_patches, facts.workspace_mib, facts.precision) == (3, 32, "fp32")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either --config FILE or --bundle DIR"),
        (("--bundle", "a", "--config", "b"), "give either --config FILE or --bundle DIR"),
        (("--bundle", "a", "--precision", "fp8"), "is none of fp32, fp16, int8"),
        (("--bundle", "a", "--frame", "big"), "'big' is not WIDTHxHEIGHT"),
    ],
)
def test_build_says_what_is_wrong_with_its_options(arguments, words):
    result = station_engine("build", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


@builds
def test_frames_smaller_than_a_patch(bundle):
    result = station_engine("build", "--bundle", bundle.path, "--frame", "8x8")
    assert result.exit_code == 2
    assert "--frame" in result.output


def test_build_without_tensorrt_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setattr(library, "_find", lambda: (None, "tensorrt is not installed"))
    result = station_engine("build", "--bundle", bundle.path)
    assert isinstance(result.exception, BackendError)
    assert "pip install" in str(result.exception)


@builds
@no_gpu
def test_verify_tells_of_the_plan(built, bundle, cache):
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 0
    assert (
        f"ok plan {only_plan(cache).path.name}: as it was built (fp32, 64 patches, none); not run yet" in result.output
    )


@builds
@no_gpu
def test_verify_refuses_a_plan_after_one_byte_is_changed(built, bundle, cache):
    path = only_plan(cache).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert f"failed plan {path}: was altered, or was built by another device or user; it will not be" in result.output
    assert "ok self-test on onnxruntime" in result.output
    assert "not loaded" in station_engine("list").output
    result = station_engine("prune")
    assert f"removed {path.stem[:12]}" in result.output
    assert "0 left" in result.output
    assert station_engine("verify", "--bundle", bundle.path).exit_code == 0


@builds
@no_gpu
def test_list_tells_of_the_plan_and_why_it_does_not_run(built, cache):
    result = station_engine("list")
    assert result.exit_code == 0
    assert "tensorrt builds plans here but runs none" in result.output
    line = next(line for line in result.output.splitlines() if line.startswith(only_plan(cache).path.stem[:12]))
    assert "toy, fp32, 64 patches" in line
    assert line.endswith("for no GPU in particular: not run yet")


@builds
@no_gpu
def test_prune_keeps_what_can_be_used(built, bundle, cache, tmp_path):
    assert "1 left" in station_engine("prune").output
    assert "1 left" in station_engine("prune", "--bundle", bundle.path).output
    other = make_bundle(tmp_path / "other", 16, name="other")
    result = station_engine("prune", "--bundle", other.path)
    assert "made from another bundle, toy" in result.output
    assert "0 left" in result.output


@builds
@no_gpu
def test_prune_removes_another_versions_plans_but_not_those_of_a_gpu_that_is_not_seen_now(built, cache, monkeypatch):
    plans = PlanCache(cache)
    entry = only_plan(cache)
    plan, _ = plans.load(entry.manifest.facts)
    facts = entry.manifest.facts
    of_a_gpu = facts.device.model_copy(update={"name": "Orin", "capability": "8.7"})
    plans.store(plan, entry.manifest.model_copy(update={"facts": facts.model_copy(update={"device": of_a_gpu})}))
    assert "2 left" in station_engine("prune").output
    here = DeviceFacts(library="TensorRT", version="10.7.0", name="Orin", capability="8.7")
    monkeypatch.setattr(command, "describe_device", lambda: here)
    output = station_engine("list").output
    assert output.count("not for this device: library TensorRT-RTX") == 2
    assert "0 left" in station_engine("prune").output


@builds
@no_gpu
def test_prune_all(built, cache):
    PlanCache(cache).store_timings(only_plan(cache).manifest.facts.device, b"measured")
    assert "0 left" in station_engine("prune", "--all").output
    assert {path.name for path in cache.iterdir()} == {"lock", "secret"}


def test_prune_without_a_cache():
    assert "0 left" in station_engine("prune").output


# --- what OpenVINO compiles ---

with_openvino = pytest.mark.skipif(openvino_library.problem() is not None, reason="the extra 'openvino' is missing")


@pytest.fixture
def compiled(bundle):
    """OpenVINO's compiled model of the bundle, which opening the engine leaves in the cache."""
    open_engine(bundle, EngineSettings(backend="openvino")).close()


def openvino_plan(cache):
    entries = [entry for entry in PlanCache(cache).entries() if isinstance(entry, Entry)]
    (entry,) = [entry for entry in entries if entry.manifest.facts.device.library == "OpenVINO"]
    return entry


@with_openvino
@pytest.mark.usefixtures("compiled")
def test_list_and_verify_tell_of_the_compiled_model(bundle, cache):
    entry = openvino_plan(cache)
    listed = station_engine("list").output
    assert re.search(r"^openvino +\d", listed, re.MULTILINE)
    line = next(line for line in listed.splitlines() if line.startswith(entry.path.stem[:12]))
    assert "toy, fp32" in line
    assert f"OpenVINO {openvino_library.version()} for {cpu_name()}" in line
    assert "serves: self-test differs by" in line
    verified = station_engine("verify", "--bundle", bundle.path)
    assert verified.exit_code == 0
    assert f"ok plan {entry.path.name}: as it was built (fp32, {cpu_name()}); serves" in verified.output


@with_openvino
@pytest.mark.usefixtures("compiled")
def test_verify_runs_no_back_end_that_would_replace_an_altered_model(bundle, cache):
    path = openvino_plan(cache).path
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert f"failed plan {path}: was altered" in result.output
    assert "not run openvino: see above" in result.output
    assert "ok self-test on onnxruntime" in result.output


@with_openvino
@pytest.mark.usefixtures("compiled")
def test_prune_keeps_the_compiled_model_until_openvino_or_the_cpu_is_another(cache, monkeypatch):
    assert "1 left" in station_engine("prune").output
    here = models.describe_device()
    monkeypatch.setattr(models, "describe_device", lambda: here.model_copy(update={"version": "2031.0"}))
    output = station_engine("prune").output
    assert f"library OpenVINO {here.version}, here OpenVINO 2031.0" in output
    assert "0 left" in output


def test_list_says_why_openvino_does_not_run(monkeypatch):
    monkeypatch.setattr(openvino_library, "_find", lambda: (None, "openvino is not installed; [extra]"))
    assert "openvino does not run here: openvino is not installed; [extra]" in station_engine("list").output
