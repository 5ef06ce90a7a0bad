"""From a run to a bundle, with a run of a few steps on small images made here."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import structlog
import torch
from lightning_fabric import Fabric
from typer.testing import CliRunner

from engines.bundle import Bundle, read_bundle
from engines.cache import Entry, PlanCache
from engines.engine import EngineSettings
from engines.errors import SelfTestError
from engines.opening import open_engine
from engines.tensorrt import library
from tests.support.scorers import run_graph
from train import checkpoint
from train.cli import app
from train.config import FitConfig
from train.data import TrainingImages, find_training_images, load_training_images
from train.errors import DataError
from train.evaluate import FrameScorer
from train.export import export_run, selftest_patches
from train.fit import Trainer, phase_at
from train.labelled import find_labelled_images
from train.scorer import Scorer

GRAPHS = {torch.float32: "scorer.onnx", torch.float16: "scorer.fp16.onnx"}

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
    arguments = ["export", "--run", str(run), "--out", str(out), "--data", str(data), "--precision", "int8"]
    result = CliRunner().invoke(app, arguments)
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


def export_untrained(folder: Path, n_images: int, holdout: float) -> tuple[Bundle, TrainingImages]:
    """A run of one step, exported."""
    make_images(folder / "train" / "good", n_images)
    config = FitConfig(width=1, steps=1, batch_size=2, holdout=holdout, minutes=None)
    *_, images = load_training_images(find_training_images(folder), config)
    assert isinstance(images, TrainingImages)
    trainer = Trainer(config, images, Fabric(accelerator="cpu", devices=1))
    trainer.advance(phase_at(config, 0.1))
    checkpoint.save(folder / checkpoint.CHECKPOINT_FILE, trainer.state())
    return export_run(folder, folder / "bundle", "weave", precision="fp32"), images


def test_held_out_images_set_the_standards(tmp_path: Path) -> None:
    bundle, images = export_untrained(tmp_path, 12, 0.7)

    standards = bundle.manifest.standards
    assert standards is not None
    assert standards.n_frames == len(images.held_out) == 8
    assert bundle.manifest.training.n_images == 4
    engine = open_engine(bundle, EngineSettings())
    frames = FrameScorer(bundle.manifest, engine)
    heat = np.concatenate([frames.score(path).heat.ravel() for path in images.held_out])
    engine.close()
    assert abs(heat.mean()) < 0.5, "the standards are of the very map that is judged"
    assert 0.5 < heat.std() < 1.5


@pytest.mark.parametrize(("n_images", "n_frames"), [(6, 6), (5, None)])
def test_where_none_is_held_out_the_training_images_do(tmp_path: Path, n_images: int, n_frames: int | None) -> None:
    bundle, images = export_untrained(tmp_path, n_images, 0)
    assert (len(images.images), images.held_out) == (n_images, [])
    standards = bundle.manifest.standards
    assert (standards and standards.n_frames) == n_frames


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


def test_lower_precisions_have_graphs_that_passed_the_gate(exported: Path, data: Path) -> None:
    bundle = read_bundle(exported)

    half, quantized, patches = bundle.variant("fp16"), bundle.variant("int8"), bundle.calibration_patches()
    assert half is not None
    assert quantized is not None
    assert patches is not None
    assert len(half) < 0.6 * len(bundle.scorer) < len(quantized) < 1.2 * len(bundle.scorer)
    assert patches.shape == (20, 64, 64, 3)  # all four of each of the five images
    assert len({patch.tobytes() for patch in patches}) == 20
    for precision, graph in (("fp16", half), ("int8", quantized)):
        scores = run_graph(graph, bundle.selftest.patches)
        assert np.isfinite(scores[0]).all()
        row = re.search(rf"\| {precision} \| (.*) \|", (exported / "MODEL_CARD.md").read_text())
        assert row is not None
        assert "ranks 20 calibration patches like fp32" in row[1]


def test_a_precision_that_does_not_score_like_fp32_is_left_out(
    exported: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubles stand for conversions that get the graph wrong: they write another detector's."""
    import train.export

    good, toy = read_bundle(exported), read_toy_graph(tmp_path)
    monkeypatch.setattr(
        train.export, "export_graph", lambda _scorer, _size, dtype=torch.float32: good.files[GRAPHS[dtype]]
    )
    monkeypatch.setattr(train.export, "quantize_graph", lambda *_: toy)

    with structlog.testing.capture_logs() as logs:
        bundle = train.export.export_run(run, tmp_path / "out", "weave", precision="int8")

    assert (bundle.variant("fp16"), bundle.variant("int8")) == (good.variant("fp16"), None)
    assert bundle.calibration_patches() is not None
    (warning,) = (line for line in logs if line["log_level"] == "warning")
    assert warning["precision"] == "int8"
    assert "self-test failed" in warning["reason"]
    card = bundle.files["MODEL_CARD.md"].decode()
    assert "| fp16 | " in card
    assert "| int8 | " not in card
    assert str(tmp_path) not in card


def test_fp32_alone_makes_the_smallest_bundle(
    exported: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double spares the export of the graph, which would be the same."""
    import train.export

    monkeypatch.setattr(train.export, "export_graph", lambda *_: read_bundle(exported).scorer)
    bundle = train.export.export_run(run, tmp_path / "out", "weave", precision="fp32")
    assert set(bundle.files) == {"scorer.onnx", "selftest.npz", "MODEL_CARD.md", "losses.png", "reconstructions.png"}
    assert "Lower precisions" not in bundle.files["MODEL_CARD.md"].decode()


def test_without_the_training_images_there_is_no_int8(
    exported: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double spares the export of the graph."""
    import train.export

    bundle = read_bundle(exported)
    monkeypatch.setattr(train.export, "export_graph", lambda *_: b"fp16")
    trained = checkpoint.load_trained(run)
    scorer = Scorer(trained.encoder, trained.generator, trained.critic, trained.config.feature_layer)
    with structlog.testing.capture_logs() as logs:
        files = train.export._lower_precisions(
            scorer, bundle.scorer, [], bundle.manifest.preprocessing, bundle.selftest, "int8"
        )
    assert files == {"scorer.fp16.onnx": b"fp16"}
    assert "training images" in logs[0]["event"]


@pytest.mark.skipif(library.problem() is not None, reason="the extra 'tensorrt' is not installed")
def test_a_plan_can_be_built_at_once(
    exported: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's real builder; a double spares the export of the graph."""
    import train.export

    good = read_bundle(exported)
    monkeypatch.setattr(
        train.export, "export_graph", lambda _scorer, _size, dtype=torch.float32: good.files[GRAPHS[dtype]]
    )
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    result = CliRunner().invoke(app, ["export", "--run", str(run), "--out", str(tmp_path / "b"), "--engine"])
    assert result.exit_code == 0, result.output
    (entry,) = PlanCache(tmp_path / "cache" / "engines").entries()
    assert isinstance(entry, Entry)
    assert entry.manifest.facts.precision == "fp16"
    assert entry.manifest.bundle_sha256 == read_bundle(tmp_path / "b").digest
    assert "on this machine only" in result.output


def test_a_map_is_smoothed_as_export_is_told(tmp_path: Path, data: Path, run: Path) -> None:
    plain = tmp_path / "plain"
    config = FitConfig(width=3, steps=1, batch_size=2, locator=False)
    *_, loaded = load_training_images(find_training_images(data), config)
    assert isinstance(loaded, TrainingImages)
    plain.mkdir()
    checkpoint.save(
        plain / checkpoint.CHECKPOINT_FILE, Trainer(config, loaded, Fabric(accelerator="cpu", devices=1)).state()
    )

    sharp, soft = (export_run(run, tmp_path / str(s), "toy", precision="fp32", smoothing=s) for s in (1.5, 8.0))

    assert (sharp.manifest.smoothing, soft.manifest.smoothing) == (1.5, 8.0)
    assert sharp.files["scorer.onnx"] == soft.files["scorer.onnx"]
    with pytest.raises(DataError, match="drop --smoothing"):
        export_run(plain, tmp_path / "none", "toy", smoothing=2.0)
    assert not (tmp_path / "none").exists()


def test_an_unknown_precision_is_told_before_anything_is_done(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "--run", str(run), "--out", str(tmp_path / "b"), "--precision", "int4"])
    assert result.exit_code == 2
    assert "fp32, fp16, int8" in result.output


def test_model_card_shows_pictures_that_are_there(exported: Path) -> None:
    card = (exported / "MODEL_CARD.md").read_text()

    pictures = set(re.findall(r"\]\((\w+\.png)\)", card))
    assert pictures == {"losses.png", "reconstructions.png", "cases.png"}
    for name in pictures:
        assert cv2.imread(str(exported / name)) is not None
    assert "](evaluation.html)" in card
    assert "hole" in (exported / "evaluation.html").read_text()
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
    monkeypatch.setattr(train.export, "export_graph", lambda *_: toy)

    with pytest.raises(SelfTestError, match="reconstruction_error"):
        train.export.export_run(run, tmp_path / "out", "broken")
    assert not (tmp_path / "out").exists()


def read_toy_graph(tmp_path: Path) -> bytes:
    from tests.support.bundles import make_bundle

    return make_bundle(tmp_path / "toy", patch_size=64, smoothing=6.0).scorer


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
