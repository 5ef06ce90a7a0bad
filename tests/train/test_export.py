"""From a run to a bundle, with a run of a few steps on small images made here."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from typer.testing import CliRunner

from engines.bundle import read_bundle
from engines.engine import EngineSettings
from engines.errors import SelfTestError
from engines.opening import open_engine
from train import checkpoint
from train.cli import app
from train.config import FitConfig
from train.data import TrainingImages, find_training_images, load_training_images
from train.export import selftest_patches
from train.fit import Trainer, phase_at
from train.labelled import find_labelled_images
from train.scorer import Scorer

torch.set_num_threads(1)  # these networks are too small for more, and threads that wait for a core cost seconds


def make_images(folder: Path, n: int, *, hole: bool = False) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    y, x = np.mgrid[:80, :100]
    for i in range(n):
        image = 120 + 60 * np.sin((x + 2 * y) / 5 + i) + rng.normal(0, 4, x.shape)
        if hole:
            image[30:50, 40:60] = 0
        assert cv2.imwrite(str(folder / f"{i}.png"), image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_images(root / "train" / "good", 5)
    make_images(root / "test" / "good", 2)
    make_images(root / "test" / "hole", 2, hole=True)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = FitConfig(width=3, steps=2, batch_size=2, warm_start=0.5, minutes=None)
    *_, images = load_training_images(find_training_images(data), config)
    assert isinstance(images, TrainingImages)
    trainer = Trainer(config, images, Fabric(accelerator="cpu", devices=1))
    for fraction in (0.1, 0.9):  # one step of each phase
        losses = trainer.advance(phase_at(config, fraction))
        record = {"step": float(trainer.step), "seconds": 1.0}
        trainer.history.append(record | {name: float(value) for name, value in losses.items()})
    checkpoint.save(folder / checkpoint.CHECKPOINT_FILE, trainer.state())
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "weave"
    result = CliRunner().invoke(app, ["export", "--run", str(run), "--out", str(out), "--data", str(data)])
    assert result.exit_code == 0, result.output
    return out


def test_bundle_says_what_it_was_made_from(exported: Path, run: Path) -> None:
    trained = checkpoint.load_trained(run)

    manifest = read_bundle(exported).manifest

    assert manifest.name == "weave"
    assert manifest.preprocessing.colour == "gray"
    assert (manifest.preprocessing.patch_size, manifest.preprocessing.stride) == (64, 64)
    assert (manifest.network.width, manifest.network.feature_layer) == (3, "block0.conv1")
    assert (manifest.alpha, manifest.lambda_) == (trained.config.alpha, 0.1)
    assert manifest.training.data_fingerprint == trained.fingerprint
    assert (manifest.training.n_images, manifest.training.steps) == (5, 2)
    assert manifest.training.metrics["image_consistency"] == trained.history[-1]["image_consistency"]


def test_engine_scores_as_the_averaged_networks_do(exported: Path, run: Path) -> None:
    trained = checkpoint.load_trained(run)
    patches = np.random.default_rng(5).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    scorer = Scorer(trained.encoder, trained.generator, trained.critic, trained.config.feature_layer).double()

    engine = open_engine(read_bundle(exported), EngineSettings())
    found = engine.score(patches)
    engine.close()

    with torch.no_grad():
        expected = [t.numpy() for t in scorer(torch.from_numpy(patches))]
    np.testing.assert_allclose(found.reconstruction_error, expected[0], rtol=1e-4)
    np.testing.assert_allclose(found.feature_error, expected[1], rtol=1e-4)
    np.testing.assert_allclose(found.residual, expected[2], atol=1e-4)


def test_model_card_shows_pictures_that_are_there(exported: Path) -> None:
    card = (exported / "MODEL_CARD.md").read_text()

    pictures = set(re.findall(r"\]\((\w+\.png)\)", card))
    assert pictures == {"losses.png", "reconstructions.png", "cases.png"}
    for name in pictures:
        assert cv2.imread(str(exported / name)) is not None
    assert "| hole | 2 |" in card
    settings = re.search(r"```json\n(.*?)```", card, re.DOTALL)
    assert settings is not None
    assert json.loads(settings[1])["width"] == 3
    assert str(exported.parent) not in card


def test_a_graph_that_does_not_reproduce_torch_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double stands for an exporter that gets the graph wrong: it writes another detector's."""
    import train.export

    toy = read_toy_graph(tmp_path)
    monkeypatch.setattr(train.export, "export_graph", lambda scorer, patch_size: toy)

    with pytest.raises(SelfTestError, match="reconstruction_error"):
        train.export.export_run(run, tmp_path / "out", "broken")
    assert not (tmp_path / "out").exists()


def read_toy_graph(tmp_path: Path) -> bytes:
    from tests.support.bundles import make_bundle

    return make_bundle(tmp_path / "toy", patch_size=64).scorer


def test_user_errors_are_told_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint here"):
        CliRunner().invoke(
            app, ["export", "--run", str(tmp_path), "--out", str(tmp_path / "b")], catch_exceptions=False
        )
    result = CliRunner().invoke(
        app, ["export", "--run", str(run), "--out", str(tmp_path / "b"), "--name", "not a name"]
    )
    assert result.exit_code == 2
    assert "not a name" in result.output
    assert not (tmp_path / "b").exists()


def test_selftest_patches_are_of_many_kinds(data: Path) -> None:
    preprocessing = FitConfig(width=3).preprocessing("gray")
    paths = find_training_images(data)

    for images in (paths, paths[:1], []):
        patches = selftest_patches(images, preprocessing)
        assert patches.shape == (16, 64, 64, 3)
        assert patches.dtype == np.uint8
        assert len({patch.tobytes() for patch in patches}) >= 12
        assert (patches.min(), patches.max()) == (0, 255)
        coloured = (patches[..., 0] != patches[..., 2]).any(axis=(1, 2))
        assert coloured.sum() >= 4  # so that swapped colours would be noticed


def test_labelled_images_find_their_masks(data: Path) -> None:
    assert [(image.defect, image.mask) for image in find_labelled_images(data)] == [
        (None, None),
        (None, None),
        ("hole", None),
        ("hole", None),
    ]
