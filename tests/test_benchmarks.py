"""What benchmarks compute from what they time; the times themselves are nobody's to assert."""

import importlib.util
import json
import subprocess
import sys
from itertools import count

import cv2
import numpy as np
import pytest

from benchmarks import __main__ as runner
from benchmarks import machine, many_stations, tile_views
from benchmarks.judging import PAPER, WAYS, judge
from benchmarks.many_stations import Heard
from benchmarks.peers import __main__ as peers
from benchmarks.peers import environment, patch_by_patch
from benchmarks.peers.__main__ import What
from benchmarks.quality import Cell, score_held_out, trivial_scores
from benchmarks.quality import judge as judge_as_evaluated
from benchmarks.resplit import resplit
from benchmarks.untrained import untrained_run
from engines.bundle import read_bundle
from engines.engine import EngineSettings
from engines.images import read_image
from engines.ort import OnnxRuntimeEngine
from tests.support.station_process import REPOSITORY
from train.checkpoint import load_trained
from train.config import preset
from train.export import export_run
from train.labelled import find_labelled_images


def test_ways_take_turns_and_the_warm_up_does_not_count():
    calls: list[str] = []
    ms = machine.in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, warm_up=2)
    assert calls == ["a", "b", "c"] * 6
    assert {name: len(values) for name, values in ms.items()} == {"a": 4, "b": 4, "c": 4}


def test_ctrl_c_keeps_whole_rounds():
    turns = count()

    def second():
        if next(turns) == 3:
            raise KeyboardInterrupt

    ms = machine.in_turns({"a": lambda: None, "b": second}, rounds=10, warm_up=1)
    assert [len(values) for values in ms.values()] == [2, 2]


def test_a_ratio_is_the_median_of_the_rounds():
    """A disturbance that falls on one round does not move it."""
    assert machine.ratio([2.0, 20.0, 4.0], [1.0, 1.0, 2.0]) == 2.0


def test_the_authors_way_and_ours_score_alike(tmp_path):
    run = untrained_run(tmp_path / "run", **preset("reference") | {"steps": 1})
    bundle = export_run(run, tmp_path / "bundle", "reference", precision="fp32")
    lambda_ = bundle.manifest.lambda_
    plain = patch_by_patch.PatchByPatch(load_trained(run), bundle.manifest.network.feature_layer, lambda_)
    patches = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    expected = np.array([plain.score(patch) for patch in patches], np.float32)
    own = OnnxRuntimeEngine(bundle, EngineSettings(threads=1)).score(patches).anomaly_score(lambda_)
    assert patch_by_patch.compare(expected, own, "ours") <= patch_by_patch.TOLERANCE
    with pytest.raises(SystemExit, match="scores differ"):
        patch_by_patch.compare(expected, own * np.float32(1.001), "ours")
    with pytest.raises(SystemExit, match="scores differ"):
        patch_by_patch.compare(expected, np.full_like(own, np.nan), "ours")


def test_a_peer_stands_beside_ours_of_its_own_precision():
    ms = {
        What("STFPM", "openvino", "fp32"): [100.0],
        What("STFPM", "openvino", "bf16"): [60.0],
        What("STFPM", "torch", "fp32"): [300.0],
        What("default preset", "openvino", "fp32"): [20.0],
        What("default preset", "openvino", "bf16"): [15.0],
        What("default preset", "onnxruntime", "fp32"): [25.0],
        What("default preset", "openvino", "fp32", "engine"): [19.0],
    }
    rows = {tuple(row[key] for key in What._fields): row for row in peers.rows_of(ms)}
    assert rows["STFPM", "openvino", "fp32", "frame"]["times_ours"] == {"default preset": 5.0}
    assert rows["STFPM", "openvino", "bf16", "frame"]["times_ours"] == {"default preset": 4.0}
    assert rows["STFPM", "torch", "fp32", "frame"]["times_ours"] == {"default preset": 15.0}
    assert "times_ours" not in rows["default preset", "openvino", "fp32", "frame"]
    assert len(rows) == len(ms)


def test_cuda_is_refused_before_anything_is_installed():
    report = {"install": [{"metadata": {"name": name}} for name in ("anomalib", "torch")]}
    environment.refuse_cuda(report)
    report["install"].append({"metadata": {"name": "nvidia-cublas-cu12"}})
    with pytest.raises(environment.PeersError, match="--index URL"):
        environment.refuse_cuda(report)


def test_peers_that_are_not_there_say_how_they_come(tmp_path):
    with pytest.raises(environment.PeersError, match="--install"):
        environment.export(tmp_path, 512)


def test_a_window_of_scores_is_summed_up():
    heard = {
        "camera-0": [Heard(10.0 + i, 9.9 + i, i) for i in range(8)],
        "camera-1": [Heard(10.0 + 2 * i, 9.8 + 2 * i, 2 * i) for i in range(4)],  # every other frame was dropped
    }
    summary = many_stations.summarize(heard, [2.0, 1.0], 10.0, 64)
    assert summary["frames_per_second"] == 1.2
    assert summary["patches_per_second"] == 76.8
    assert summary["slowest_to_fastest"] == 0.5
    assert summary["cpu_ms_per_frame"] == 250.0
    assert summary["latency_p50_ms"] == 100.0
    assert summary["latency_p99_ms"] == 200.0
    assert summary["dropped_share"] == 0.2  # 3 of 8 + 7


def test_a_silent_station_is_named():
    with pytest.raises(machine.CannotMeasureError, match="camera-1"):
        many_stations.summarize({"camera-0": [Heard(1.0, 0.9, 1)], "camera-1": []}, [1.0, 1.0], 10.0, 64)


def test_bench_leaves_out_what_cannot_run(tmp_path):
    absent = runner.Part("absent", "benchmarks.absent", "nothing")
    assert "there is no benchmarks.absent" in (runner.missing(absent, tmp_path) or "")
    by_name = {part.name: part for part in runner.PARTS}
    assert "--install" in (runner.missing(by_name["peers"], tmp_path) or "")
    assert runner.missing(by_name["many_stations"], tmp_path) is None


HERE = [part for part in runner.PARTS if importlib.util.find_spec(part.module)]


@pytest.mark.parametrize("part", HERE, ids=[part.name for part in HERE])
def test_every_part_takes_what_bench_gives_it(part):
    help_ = subprocess.run(
        [sys.executable, "-m", part.module, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    options = [word for word in (*part.arguments, "--quick", "--json") if word.startswith("--")]
    assert [option for option in options if option not in help_] == []


def test_bench_writes_what_a_part_measured(tmp_path, monkeypatch):
    (tmp_path / "measuring.py").write_text(
        "import json, pathlib, sys\n"
        "assert '--quick' in sys.argv\n"
        "path = pathlib.Path(sys.argv[sys.argv.index('--json') + 1])\n"
        "path.parent.mkdir(parents=True, exist_ok=True)\n"
        "path.write_text(json.dumps({'rows': []}))\n"
    )
    monkeypatch.chdir(tmp_path)
    part = runner.Part("measuring", "measuring", "something")
    assert runner.run(part, quick=True).endswith(" s")
    assert json.loads((runner.RESULTS / "perf_measuring.json").read_text()) == {"rows": []}
    assert "failed with exit code 1" in runner.run(part, quick=False)


def test_resplit_links_what_a_list_names(tmp_path):
    data = tmp_path / "tiles"
    for folder, names in (("train/good", "abc"), ("test/good", "de"), ("test/crack", "x"), ("ground_truth/crack", "y")):
        (data / folder).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(data / folder / f"{name}.png"), np.full((64, 64, 3), ord(name), np.uint8))
    listed = tmp_path / "names.txt"
    listed.write_text("a.png\nd.png\n")
    out = tmp_path / "out"

    assert resplit(data, listed, out) == (2, 3)

    found = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert {path for path in found if "good" in path} == {
        *(f"train/good/{n}.png" for n in "ad"),
        *(f"test/good/{n}.png" for n in "bce"),
    }
    assert [image.defect for image in find_labelled_images(out)].count("crack") == 1
    assert read_image(out / "train/good/d.png")[0, 0, 0] == ord("d")


@pytest.mark.parametrize(
    ("listed", "message"), [("a.png\nnone.png", "none.png"), ("", "some"), ("a.png\nb.png", "leave some")]
)
def test_resplit_refuses_a_list_that_splits_nothing(tmp_path, listed, message):
    for part, name in (("train", "a"), ("test", "b")):
        (tmp_path / "data" / part / "good").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "data" / part / "good" / f"{name}.png"), np.zeros((64, 64, 3), np.uint8))
    names = tmp_path / "names.txt"
    names.write_text(listed)
    with pytest.raises(ValueError, match=message):
        resplit(tmp_path / "data", names, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_last_way_of_judging_is_what_an_evaluation_sees(tmp_path):
    data = tmp_path / "ramps"
    rng = np.random.default_rng(0)
    for folder, n, hole in (("test/good", 4, 0), ("test/hole", 4, 90), ("ground_truth/hole", 0, 0)):
        (data / folder).mkdir(parents=True)
        for i in range(n):
            image = rng.normal(120, 25, (128, 96)).clip(0, 255).astype(np.uint8)
            image[40 : 60 + 4 * i, 30:50] -= np.minimum(image[40 : 60 + 4 * i, 30:50], hole * (i % 2))
            cv2.imwrite(str(data / folder / f"{i}.png"), image)
    cell = Cell(data, "cbigan", 0)
    run = untrained_run(tmp_path / "runs" / cell.name / "run", width=2, holdout=0.8)
    bundle = export_run(run, tmp_path / "runs" / cell.name / "bundle", "toy", precision="fp32")
    seen: list[None] = []

    rows = judge(cell, tmp_path / "runs", lambda: seen.append(None))

    assert [row["way"] for row in rows] == [PAPER, *WAYS]
    assert len(seen) == 8 + 8  # held out, and test images
    expected = judge_as_evaluated(data, bundle, load_trained(run).held_out)
    assert rows[-1]["image_auroc"] == pytest.approx(expected["image_auroc"])
    assert rows[-1]["good_only_accuracy"] == pytest.approx(expected["good_only_accuracy"])
    assert expected["planted_accuracy"] is None or 0 <= expected["planted_accuracy"] <= 1
    assert len({row["image_auroc"] for row in rows}) > 1


def test_views_of_a_tile_stay_together():
    names = ["exp2_num_524.jpg", "exp1_num_461.jpg", "exp1_num_10181.jpg", "exp3_num_724.jpg", "exp2_num_925.jpg"]
    assert tile_views.views(names) == [
        ["exp1_num_461.jpg", "exp2_num_524.jpg", "exp3_num_724.jpg"],
        ["exp2_num_925.jpg"],
        ["exp1_num_10181.jpg"],
    ]
    assert tile_views.views([]) == []
    with pytest.raises(ValueError, match=r"tile\.jpg: no number"):
        tile_views.views(["exp1_num_461.jpg", "tile.jpg"])


def test_a_thumbnail_tells_whether_an_image_was_seen(tmp_path):
    rng = np.random.default_rng(0)
    seen, unseen = (cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (96, 80)) for _ in range(2))
    (tmp_path / "train/good").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "train/good/a.png"), seen)
    *_, unlike = trivial_scores(tmp_path).values()
    brighter = cv2.convertScaleAbs(seen, alpha=0.5, beta=40)
    brighter[40, 50] = 0  # a hole of one pixel, which it does not see
    assert unlike(seen) == pytest.approx(0, abs=1e-5)
    assert unlike(brighter) < 0.05
    assert unlike(unseen) > 0.3


def test_where_nothing_is_held_out_nothing_is_scored():
    bundle = read_bundle(REPOSITORY / "engines/bundled/brick")
    assert bundle.manifest.standards is not None
    engine = OnnxRuntimeEngine(bundle, EngineSettings())
    assert score_held_out(bundle.manifest, engine, []) == ([], [])
    engine.close()
