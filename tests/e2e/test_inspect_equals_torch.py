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
from engines.images import read_image
from engines.tiling import Tiler
from tests.support.station_process import REPOSITORY, station
from train.checkpoint import load_trained
from train.scorer import Scorer

pytestmark = pytest.mark.e2e
SIZES = [(64, 64), (103, 222), (200, 77), (131, 403)]  # no side but the first a multiple of 64


def station_train(*args: str | Path) -> None:
    command = [sys.executable, "-m", "train", *map(str, args)]
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)


def test_scores_of_odd_sized_images_equal_torchs(tmp_path: Path):
    images, run, bundle = tmp_path / "images", tmp_path / "run", tmp_path / "bundle"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        smooth = cv2.GaussianBlur(rng.normal(0, 400, (*size, 3)), (0, 0), 3)
        assert cv2.imwrite(str(images / f"{i}.png"), (128 + smooth).clip(0, 255).astype(np.uint8))
    station_train("fit", "--data", images, "--out", run, "--width", "3", "--steps", "12", "--warm-start", "0.5")
    station_train("export", "--run", run, "--out", bundle)

    done = station("inspect", "--bundle", bundle, "--json", images)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["path"]).name for line in lines] == [f"{i}.png" for i in range(len(SIZES))]

    trained, manifest = load_trained(run), read_bundle(bundle).manifest
    scorer = Scorer(trained.encoder, trained.generator, trained.critic, trained.config.feature_layer).double()
    tiler = Tiler(manifest.preprocessing)
    for line in lines:
        patches = torch.from_numpy(tiler.patches(tiler.prepare(read_image(Path(line["path"])))))
        l_r, l_fd, *_ = scorer(patches)
        expected = ((1 - manifest.lambda_) * l_r + manifest.lambda_ * l_fd).numpy()
        assert [patch["score"] for patch in line["patches"]] == pytest.approx(expected, rel=1e-3)
        assert line["score"] == pytest.approx(expected.max(), rel=1e-3)
