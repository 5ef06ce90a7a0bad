"""What `station inspect` says of an image is what torch says of its patches: nothing is lost on the way to the line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engines.bundle import read_bundle
from engines.engine import PatchScores
from engines.images import find_images, read_image
from engines.judging import Judging
from engines.tiling import Tiler
from tests.support.station_process import REPOSITORY, station
from train.checkpoint import load_trained
from train.export import fit_scales
from train.scorer import Scorer

pytestmark = pytest.mark.e2e
SIZES = [(64, 64), (103, 222), (200, 77), (131, 403)]  # no side but the first a multiple of 64


def station_train(*args: str | Path) -> None:
    command = [sys.executable, "-m", "train", *map(str, args)]
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)


@pytest.mark.parametrize("locator", ["--locator", "--no-locator"])
def test_scores_of_odd_sized_images_equal_torchs(tmp_path: Path, locator: str):
    images, run, bundle = tmp_path / "images", tmp_path / "run", tmp_path / "bundle"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        smooth = cv2.GaussianBlur(rng.normal(0, 400, (*size, 3)), (0, 0), 3)
        assert cv2.imwrite(str(images / f"{i}.png"), (128 + smooth).clip(0, 255).astype(np.uint8))
    budget = ("--width", "3", "--steps", "12", "--warm-start", "0.5")
    station_train("fit", "--data", images, "--out", run, *budget, locator)
    station_train("export", "--run", run, "--out", bundle)

    done = station("inspect", "--bundle", bundle, "--json", images)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["path"]).name for line in lines] == [f"{i}.png" for i in range(len(SIZES))]

    trained, manifest = load_trained(run), read_bundle(bundle).manifest
    scorer = Scorer(trained.encoder, trained.generator, trained.critic, trained.config.feature_layer, trained.locator)
    if trained.locator is not None:
        scorer.scales = fit_scales(trained, trained.locator, find_images(images), manifest.preprocessing)
    scorer.double()
    tiler = Tiler(manifest.preprocessing)
    for line in lines:
        image = read_image(Path(line["path"]))
        with torch.no_grad():
            *outputs, _ = scorer(torch.from_numpy(tiler.patches(tiler.prepare(image))))
        scores = PatchScores(*(output.numpy().astype(np.float32) for output in outputs))
        expected = Judging.of(manifest)(scores, tiler.grid(image.shape[:2])).patch_scores
        assert [patch["score"] for patch in line["patches"]] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert line["score"] == pytest.approx(expected.max(), rel=1e-3, abs=1e-4)
