import json

import pytest
from typer.testing import CliRunner

from engines.manifest import Preprocessing
from engines.opening import installed_backends
from station.cli import app
from station.commands import bench
from station.commands.frames import parse_size
from tests.support.bundles import make_bundle


@pytest.fixture
def toy(tmp_path):
    return make_bundle(tmp_path / "toy", 32)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_json_holds_what_was_measured(toy):
    result = run("--bundle", toy.path, "--frames", 12, "--warm-up", 2, "--size", "100x70", "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["bundle_sha256"] == toy.digest
    assert measured["frame"] == {"width": 100, "height": 70, "patches": 4 * 3}
    assert measured["frames"] == 12
    assert measured["engine"]["backend"] == next(installed_backends()).name
    assert "threads: 1" in measured["engine"]["device"]
    assert set(measured["ms"]) == {"prepare", "infer", "judge", "total"}
    for stage in measured["ms"].values():
        assert 0 < stage["p50"] <= stage["p99"]
    assert measured["fps"] > 0


def test_a_person_sees_stages_machine_and_versions(toy):
    result = run("--bundle", toy.path, "--frames", 10, "--warm-up", 0, "--size", "64x64")
    assert result.exit_code == 0, result.output
    for word in ("prepare", "infer", "judge", "total", "p99", "frames a second", "fp32", "Python", "64 x 64"):
        assert word in result.stdout


def test_frames_have_the_size_that_the_bundle_asks_for(tmp_path):
    bundle = make_bundle(tmp_path / "sized", 32, frame_size=(64, 96))
    measured = json.loads(run("--bundle", bundle.path, "--frames", 10, "--warm-up", 0, "--json").stdout)
    assert measured["frame"] == {"width": 96, "height": 64, "patches": 6}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "100"], "is not WIDTHxHEIGHT"),
        (["--size", "8x8"], "less than one patch"),
        (["--engine", "abacus"], "is none of auto, onnxruntime"),
        (["--mode", "idle"], "is none of latency, throughput"),
        (["--frames", "0"], "greater than or equal to 10"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(toy, arguments, words):
    result = run("--bundle", toy.path, *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())


def test_ctrl_c_keeps_what_was_measured():
    class Interrupted:
        """A test double: the user presses Ctrl-C during the fifth frame."""

        calls = 0

        def inspect(self, image):
            self.calls += 1
            if self.calls == 5:
                raise KeyboardInterrupt
            return type("Inspection", (), {"ms": {"prepare": 1.0, "infer": 2.0, "judge": 3.0}})()

    ms = bench._measure(Interrupted(), (32, 32), warm_up=1, n=100)
    assert ms == {"prepare": [1.0] * 3, "infer": [2.0] * 3, "judge": [3.0] * 3}
    with pytest.raises(KeyboardInterrupt):
        bench._measure(Interrupted(), (32, 32), warm_up=10, n=100)


def test_sizes_are_width_first():
    assert parse_size("640x480", "--size") == (480, 640)
    size = parse_size("96x64", "--size")
    assert Preprocessing(colour="rgb", frame_size=size, patch_size=32, stride=32).frame_size == (64, 96)
