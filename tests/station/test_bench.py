import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from engines.engine import EngineSettings
from engines.errors import EngineError
from engines.manifest import Preprocessing
from engines.opening import installed_backends
from station.cli import app
from station.commands import bench, bench_daemon
from station.commands.frames import parse_size
from tests.support.bundles import make_bundle
from tests.support.mosquitto import need


@pytest.fixture
def toy(tmp_path):
    return make_bundle(tmp_path / "toy", 32)


def run(*arguments):
    """The engine alone."""
    return run_all(*arguments, "--engine-only")


def run_all(*arguments):
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
    assert 0 < measured["fps"] < measured["infer_fps"]
    assert "daemon" not in measured


def test_a_person_sees_stages_machine_and_versions(toy):
    result = run("--bundle", toy.path, "--frames", 10, "--warm-up", 0, "--size", "64x64")
    assert result.exit_code == 0, result.output
    for word in ("prepare", "infer", "judge", "total", "p99", "frames a second", "fp32", "Python", "64 x 64"):
        assert word in result.stdout


def test_the_whole_daemon_is_measured_with_a_real_broker(toy):
    need("mosquitto")
    result = run_all("--bundle", toy.path, "--frames", 40, "--warm-up", 2, "--size", "100x70", "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    daemon = json.loads(result.stdout)["daemon"]
    assert daemon["broker"].startswith("mosquitto ")
    stages = {"wait", "prepare", "infer", "judge", "total", "received"}
    for policy in ("every", "latest"):
        part = daemon[policy]
        assert part["frames"] == 40
        assert part["fps"] > 0
        assert part["resident_mib"] > 20
        assert set(part["ms"]) == stages | ({"alert"} if part["alerts"] else set())
        assert part["ms"]["total"]["p50"] <= part["ms"]["received"]["p50"]
    assert daemon["every"]["dropped"] == 0
    assert daemon["every"]["of_engine"] > 0
    assert daemon["latest"]["camera_fps"] == pytest.approx(0.7 * daemon["every"]["fps"], abs=0.02)


def test_alerts_are_timed_from_capture_to_arrival(toy, tmp_path):
    need("mosquitto")
    quiet, loud = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64, 3), np.uint8)
    loud[:] = 255 * (np.arange(64) // 8 % 2).astype(np.uint8)[:, None, None]
    task = bench_daemon.Task(
        toy.path, EngineSettings(backend="onnxruntime"), [quiet] * 4 + [loud], "every", threshold=100
    )
    with bench_daemon.local_broker(tmp_path) as broker:
        heard = bench_daemon.run_daemon(task, broker, tmp_path / "run", 2, 18, lambda: None)
    assert [score.frame for score, _ in heard.scores] == list(range(3, 21))
    assert [alert.first_frame for alert, _ in heard.alerts if alert.first_frame <= 20] == [5, 10, 15, 20]
    assert heard.summary()["ms"]["alert"]["p50"] > 0


def test_without_mosquitto_the_demos_broker_serves(toy, monkeypatch):
    monkeypatch.setattr(bench_daemon.shutil, "which", lambda *_, **__: None)
    result = run_all("--bundle", toy.path, "--frames", 10, "--warm-up", 1, "--size", "64x64", "--threads", 1)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "The whole daemon, with amqtt" in said
    for word in ("received", "every p99", "latest p50", "of what the engine alone does", "frames dropped"):
        assert word in said


def test_without_any_broker_the_engine_is_measured_and_the_reason_told(toy, monkeypatch):
    monkeypatch.setattr(bench_daemon.shutil, "which", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)  # as if it were not installed
    few = ("--bundle", toy.path, "--frames", 10, "--warm-up", 1, "--size", "64x64", "--threads", 1)
    result = run_all(*few)
    assert result.exit_code == 0, result.output
    assert "frames a second" in result.stdout
    assert "not measured: no broker: install mosquitto" in result.stdout
    measured = json.loads(run_all(*few, "--json").stdout)
    assert measured["daemon"] is None
    assert "pip install" in measured["daemon_missing"]
    assert run_all(*few, "--daemon").exit_code == 2


def test_a_daemon_that_fails_is_told_with_the_end_of_its_log(toy, tmp_path, monkeypatch):
    need("mosquitto")
    task = bench_daemon.Task(tmp_path / "no bundle", EngineSettings(threads=1), bench.make_textures(64, 64), "every")
    with bench_daemon.local_broker(tmp_path) as broker, pytest.raises(EngineError, match=r"(?s)fell silent.*no bundle"):
        bench_daemon.run_daemon(task, broker, tmp_path / "run", 1, 10, lambda: None)


def test_one_frame_in_thirty_makes_an_alert():
    textures = bench.make_textures(16, 16)
    scores = [5.0, 1.0, 9.0, 2.0, 3.0, 4.0, 6.0, 0.5]
    shown, threshold = bench.with_alerts(textures, scores)
    assert threshold == 7.5
    assert sum(frame is textures[2] for frame in shown) == 1
    assert len(shown) == 29
    assert bench.with_alerts(textures, [-score for score in scores])[1] is None


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

    textures = bench.make_textures(32, 32)
    ms = bench._measure(Interrupted(), textures, warm_up=1, n=100)
    assert ms == {"prepare": [1.0] * 3, "infer": [2.0] * 3, "judge": [3.0] * 3}
    with pytest.raises(KeyboardInterrupt):
        bench._measure(Interrupted(), textures, warm_up=10, n=100)


def test_sizes_are_width_first():
    assert parse_size("640x480", "--size") == (480, 640)
    size = parse_size("96x64", "--size")
    assert Preprocessing(colour="rgb", frame_size=size, patch_size=32, stride=32).frame_size == (64, 96)
