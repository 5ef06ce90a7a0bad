import itertools
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from engines.opening import installed_backends
from engines.tiling import Tiler
from station.cli import app, main
from station.inspection import Inspector
from tests.support.bundles import GREY, LAMBDA, make_bundle, toy_scores
from tests.support.calibrations import make_calibration

THRESHOLD = 300.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy", 32)


@pytest.fixture
def calibration(bundle, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(make_calibration(bundle, threshold=THRESHOLD).model_dump_json(by_alias=True))
    return path


@pytest.fixture
def images(tmp_path):
    """Two folders with a file of the same name each, one of them with a defect."""
    good = np.full((70, 100, 3), GREY, np.uint8)
    bad = good.copy()
    bad[10:30, 40:60] = 255
    for folder, image in (("good", good), ("bad", bad)):
        (tmp_path / "images" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / folder / "000.png"), image)
    return tmp_path / "images"


def station(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def records(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_json_lines_hold_the_scores_of_the_model(bundle, calibration, images):
    result = station("--bundle", bundle.path, "--calibration", calibration, "--json", images)
    assert result.exit_code == 0, result.output
    bad, good = records(result)
    assert set(bad) == {"path", "score", "threshold", "anomalous", "patches", "ms"}
    assert bad["path"] == str(images / "bad" / "000.png")
    assert (bad["anomalous"], good["anomalous"]) == (True, False)
    assert bad["threshold"] == THRESHOLD
    assert good["score"] == 0
    tiler = Tiler(bundle.manifest.preprocessing)
    image = cv2.imread(bad["path"])
    expected = toy_scores(tiler.patches(tiler.prepare(image)))
    scores = (1 - LAMBDA) * expected.reconstruction_error + LAMBDA * expected.feature_error
    assert [patch["score"] for patch in bad["patches"]] == pytest.approx(scores, rel=1e-4)
    assert bad["score"] == pytest.approx(scores.max(), rel=1e-4)
    grid = tiler.grid((70, 100))
    assert [(p["x"], p["y"], p["w"], p["h"]) for p in bad["patches"]] == [grid.box(i) for i in range(grid.n)]
    assert bad["ms"] > 0


def test_every_back_end_gives_the_same_scores(bundle, images):
    scores = []
    for backend in installed_backends():
        result = station("--bundle", bundle.path, "--engine", backend.name, "--json", images)
        assert result.exit_code == 0, result.output
        scores.append([record["score"] for record in records(result)])
    assert scores == [pytest.approx(scores[0], rel=1e-4)] * len(scores)


def test_an_unknown_back_end_is_a_usage_error(bundle, images):
    result = station("--bundle", bundle.path, "--engine", "abacus", images)
    assert result.exit_code == 2
    assert "is none of auto, onnxruntime, openvino, tensorrt" in result.output


def test_without_a_calibration_there_is_no_verdict(bundle, images):
    bad, _ = records(station("--bundle", bundle.path, "--json", images))
    assert bad["threshold"] is None
    assert bad["anomalous"] is None


def test_table_names_the_defect(bundle, calibration, images):
    result = station("--bundle", bundle.path, "--calibration", calibration, images)
    assert result.exit_code == 0
    (bad,) = (line for line in result.stdout.splitlines() if "bad/000.png" in line)
    (good,) = (line for line in result.stdout.splitlines() if "good/000.png" in line)
    assert "DEFECT" in bad
    assert "good" in good.split()
    assert "1 of 2 files score above the threshold of 300" in result.stdout


def test_unreadable_and_too_small_files_are_named_and_the_others_go_on(bundle, images):
    (images / "bad" / "001.png").write_bytes(b"not an image")
    cv2.imwrite(str(images / "good" / "small.png"), np.zeros((10, 10, 3), np.uint8))
    result = station("--bundle", bundle.path, "--json", images, images / "missing.png")
    assert result.exit_code == 1
    assert len(records(result)) == 2
    lines = result.stderr.splitlines()
    for name in ("001.png", "small.png", "missing.png"):
        (line,) = (line for line in lines if name in line)
        assert line.startswith("left out")
    assert "3 of 5 files could not be inspected" in result.stderr


def test_heatmaps_of_files_with_the_same_name_do_not_collide(bundle, calibration, images, tmp_path):
    cv2.imwrite(str(images / "bad" / "000.jpg"), np.full((70, 100, 3), GREY, np.uint8))
    out = tmp_path / "out"
    result = station(
        "--bundle", bundle.path, "--calibration", calibration, "--heatmaps", out, images / "bad", images / "good"
    )
    assert result.exit_code == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == ["bad/000.jpg.jpg", "bad/000.png.jpg", "good/000.png.jpg"]
    picture = cv2.imread(str(out / "bad" / "000.png.jpg"))
    assert picture is not None
    assert picture.shape[1] == 480
    assert "3 pictures are in" in result.stderr


def test_heatmaps_stay_inside_their_folder(bundle, images, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = station("--bundle", bundle.path, "--heatmaps", "out", "../images/bad/000.png", "../images/good")
    assert result.exit_code == 0
    assert len(list(Path("out").rglob("*.jpg"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "work"]


def test_a_file_given_twice_is_inspected_once(bundle, images):
    result = station("--bundle", bundle.path, "--json", images, images / "bad" / "000.png")
    assert len(records(result)) == 2


def test_defect_outside_the_calibrated_region_is_not_seen(bundle, images, tmp_path):
    roi = {"x": 0, "y": 32, "width": 100, "height": 38}
    camera = {"source": "folder", "frame_height": 70, "frame_width": 100, "roi": roi}
    path = tmp_path / "calibration.json"
    path.write_text(make_calibration(bundle, threshold=300, camera=camera).model_dump_json(by_alias=True))
    bad, _ = records(station("--bundle", bundle.path, "--calibration", path, "--json", images))
    assert bad["score"] == 0
    assert min(patch["y"] for patch in bad["patches"]) == 32


def test_what_a_user_can_mend_is_one_line(bundle, images, tmp_path, monkeypatch, capsys):
    other = make_bundle(tmp_path / "other", 32, grey=10)
    foreign = tmp_path / "foreign.json"
    foreign.write_text(make_calibration(other).model_dump_json(by_alias=True))
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (("--bundle", tmp_path / "nothing", images), "no such bundle"),
        (("--bundle", bundle.path, "--calibration", foreign, images), "was made for bundle toy"),
        (("--bundle", bundle.path, tmp_path / "empty"), "holds no PNG"),
        (("--bundle", bundle.path, "--heatmaps", foreign, images), "cannot be written"),
    ):
        monkeypatch.setattr(sys, "argv", ["station", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 1
        line, page = capsys.readouterr().err.splitlines()
        assert page.startswith("see docs/errors.md#")
        assert line.startswith("error: ")
        assert words in line


def test_interrupt_loses_nothing_that_is_done(bundle, calibration, images, monkeypatch):
    inspect_once = Inspector.inspect
    calls = itertools.count()

    def interrupted(self, image):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return inspect_once(self, image)

    monkeypatch.setattr(Inspector, "inspect", interrupted)
    result = station("--bundle", bundle.path, "--calibration", calibration, images)
    assert result.exit_code == 130
    assert "bad/000.png" in result.stdout
    assert "Interrupted: 1 of 2 files are done." in result.stderr
