"""Evaluation end to end: a toy bundle, a small data set in MVTec AD layout, the command as a user gives it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from engines.bundle import Bundle
from engines.engine import EngineSettings
from engines.opening import open_engine
from tests.support.bundles import GREY, LAMBDA, make_bundle, toy_scores
from train.cli import app
from train.errors import DataError
from train.evaluate import Evaluation, FrameScorer, evaluate
from train.labelled import find_labelled_images
from train.metrics import image_metrics

SIZE = (70, 90)  # (height, width); no multiple of the toy's patch
KEYS = {"image_auroc", "balanced_accuracy", "pixel_auroc", "au_pro", "per_defect", "n_good", "n_anomalous"}


def surface(rng: np.random.Generator) -> np.ndarray:
    return np.clip(rng.normal(GREY, 3, (*SIZE, 3)), 0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def make_data(root: Path, *, masks: bool = True) -> Path:
    """Good surfaces; `hole`: a clear square; `stain`: faint, one of them with an empty mask."""
    rng = np.random.default_rng(3)
    for i in range(4):
        write(root / "test" / "good" / f"{i}.png", surface(rng))
    for defect, n, depth in (("hole", 3, 100), ("stain", 2, 2)):
        for i in range(n):
            image, mask = surface(rng), np.zeros(SIZE, np.uint8)
            region = (slice(20 + i, 35 + i), slice(60, 85))
            image[region] -= np.uint8(depth)
            if not (defect == "stain" and i == 0):
                mask[region] = 255
            mask[0, 0] = 100  # a grey edge, below the threshold
            write(root / "test" / defect / f"{i}.png", image)
            if masks:
                write(root / "ground_truth" / defect / f"{i}_mask.png", mask)
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy")


def run(bundle: Bundle, data: Path) -> Evaluation:
    engine = open_engine(bundle, EngineSettings())
    try:
        return evaluate(find_labelled_images(data), FrameScorer(bundle.manifest, engine))
    finally:
        engine.close()


def test_scores_and_metrics_of_a_small_data_set(bundle: Bundle, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")

    result = run(bundle, data)

    assert [i.path.relative_to(data / "test").as_posix() for i, _ in result.scored] == [
        *(f"good/{i}.png" for i in range(4)),
        *(f"hole/{i}.png" for i in range(3)),
        *(f"stain/{i}.png" for i in range(2)),
    ]
    for image, score in result.scored:
        picture = cv2.imread(str(image.path))[..., ::-1]
        # The toy's patches are 32 x 32; the last row and column are aligned to the border.
        patches = np.stack([picture[y : y + 32, x : x + 32] for y in (0, 32, 38) for x in (0, 32, 58)])
        expected = toy_scores(patches)
        patch_scores = (1 - LAMBDA) * expected.reconstruction_error + LAMBDA * expected.feature_error
        assert score == pytest.approx(patch_scores.max(), rel=1e-5)
    good = [score for image, score in result.scored if image.defect is None]
    bad = [score for image, score in result.scored if image.defect is not None]
    assert (result.n_good, result.overall.n_anomalous) == (4, 5)
    assert result.overall.image_auroc == pytest.approx(image_metrics(good, bad).auroc)
    assert [path.name for path in result.empty_mask] == ["0.png"]
    assert result.without_mask == []

    hole = result.per_defect["hole"]
    assert (hole.n_anomalous, hole.image_auroc, hole.balanced_accuracy) == (3, 1.0, 1.0)
    assert hole.pixel_auroc == pytest.approx(1.0)
    assert hole.au_pro == pytest.approx(1.0)
    stain = result.per_defect["stain"]
    assert stain.n_anomalous == 2
    assert 0.5 < stain.pixel_auroc < hole.pixel_auroc
    assert result.pro_curve[0] == (0, 0)
    assert result.pro_curve[-1] == (1, 1)
    best = [score >= result.threshold for score in bad].count(True) / 5
    false = [score >= result.threshold for score in good].count(True) / 4
    assert (best + 1 - false) / 2 == pytest.approx(result.overall.balanced_accuracy)
    assert stain.pixel_auroc < result.overall.pixel_auroc < hole.pixel_auroc


def test_without_masks_there_are_no_pixel_metrics(bundle: Bundle, tmp_path: Path) -> None:
    result = run(bundle, make_data(tmp_path / "data", masks=False))

    assert (result.overall.pixel_auroc, result.overall.au_pro) == (None, None)
    assert result.overall.image_auroc > 0.5
    assert len(result.without_mask) == 5


def test_command_prints_the_metrics_as_one_json_object(bundle: Bundle, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}

    result = CliRunner().invoke(app, ["evaluate", "--bundle", str(bundle.path), "--data", str(data), "--json"])

    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert set(metrics) == KEYS
    assert metrics["per_defect"].keys() == {"hole", "stain"}
    assert metrics["per_defect"]["hole"]["image_auroc"] == 1.0
    assert "empty mask" in result.stderr
    report = json.loads((tmp_path / "toy-evaluation" / "report.json").read_text())
    assert {key: report[key] for key in KEYS} == metrics
    assert report["bundle"]["sha256"] == bundle.digest
    assert len(report["images"]) == 9
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before
    page = (tmp_path / "toy-evaluation" / "evaluation.html").read_text()
    assert page.count("<div class='panels'>") == 6 + 6
    assert "Worst cases" in page
    assert f"sha256 {bundle.digest}" in page
    sheet = cv2.imread(str(tmp_path / "toy-evaluation" / "cases.png"))
    assert min(sheet.shape[:2]) > 300


def test_command_prints_a_table(bundle: Bundle, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", masks=False)

    result = CliRunner().invoke(
        app, ["evaluate", "--bundle", str(bundle.path), "--data", str(data), "--out", str(tmp_path / "report")]
    )

    assert result.exit_code == 0, result.output
    assert "4 good and 5 defective" in result.stdout
    assert "hole" in result.stdout
    assert "–" in result.stdout
    assert "5 defective images have no mask" in result.stderr
    assert (tmp_path / "report" / "report.json").is_file()


def test_report_never_goes_into_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")

    result = CliRunner().invoke(
        app, ["evaluate", "--bundle", str(bundle.path), "--data", str(data), "--out", str(bundle.path / "report")]
    )

    assert result.exit_code == 2
    assert not (bundle.path / "report").exists()


def test_mask_of_another_size_is_named(bundle: Bundle, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    write(data / "ground_truth" / "hole" / "1_mask.png", np.zeros((10, 20), np.uint8))

    with pytest.raises(DataError, match=r"1_mask\.png: 20 x 10 pixels, but .*1\.png has 90 x 70"):
        run(bundle, data)


def test_image_smaller_than_a_patch_is_named(bundle: Bundle, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    write(data / "test" / "good" / "small.png", np.zeros((20, 20, 3), np.uint8))

    with pytest.raises(DataError, match=r"small\.png: .*less than one patch"):
        run(bundle, data)


def test_data_without_both_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test/good/ there"):
        find_labelled_images(tmp_path)
    write(tmp_path / "test" / "good" / "0.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="1 good and 0 defective"):
        find_labelled_images(tmp_path)
