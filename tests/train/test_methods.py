"""The paper's other methods: their losses by other means, and each from its training to a bundle that scores alike."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import typer
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import engines.bundled
from engines.bundle import Bundle
from engines.engine import EngineSettings, PatchScores
from engines.judging import Judging
from engines.manifest import Manifest
from engines.opening import open_engine
from engines.tiling import Tiler
from tests.support.scorers import some_patches
from train import checkpoint
from train.architecture import Architecture
from train.cli import app
from train.commands.fit import new_config
from train.config import FitConfig
from train.data import TrainingImages, find_training_images, load_training_images
from train.export import export_run
from train.fit import Trainer, phase_at, train
from train.methods import METHODS, load
from train.methods.ae_l2 import SquaredErrorPlayer
from train.methods.ae_ssim import Dissimilarity, SsimPlayer
from train.methods.f_anogan import ImageCriticPlayer, IziPlayer, image_gradient_penalty
from train.methods.ganomaly import EncoderPair, GanomalyPlayer, RealFakePlayer
from train.methods.image_critic import ImageCritic
from train.networks import Encoder, Generator

torch.set_num_threads(1)  # these networks are too small for more, and threads that wait for a core cost seconds

ARCH = Architecture(width=1, latent_size=4)
OTHERS = METHODS[1:]
TINY = {"width": 2, "latent_size": 8, "batch_size": 2}


def make_images(folder: Path, n: int = 4) -> None:
    folder.mkdir(parents=True)
    y, x = np.mgrid[:90, :130]
    for i in range(n):
        noise = np.random.default_rng(i).normal(0, 6, (*x.shape, 3))
        image = (120 + 60 * np.sin((x + 2 * y) / 5 + i))[..., None] + noise
        assert cv2.imwrite(str(folder / f"{i}.png"), image.clip(0, 255).astype(np.uint8))


def make_trainer(folder: Path, method: str, precision: Any = "32-true", **settings: Any) -> Trainer:
    config = new_config({"method": method, **TINY, **settings})
    *_, images = load_training_images(find_training_images(folder), config)
    assert isinstance(images, TrainingImages)
    return Trainer(config, images, Fabric(accelerator="cpu", devices=1, precision=precision))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    nets = (trainer.encoder, trainer.generator, trainer.critic, *trainer.averaged)
    return {f"{i}.{name}": value.clone() for i, net in enumerate(nets) for name, value in net.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor], net: int) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before if name.startswith(f"{net}."))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "good"
    make_images(folder)
    return folder


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def batch(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x, z and eps."""
    return torch.rand(n, 3, 64, 64, dtype=torch.float64) * 2 - 1, torch.randn(n, 4).double(), torch.rand(n, 1).double()


# Settings.


def test_egbad_and_double_autoencoder_are_cbigan_with_other_settings() -> None:
    egbad, double_ae = (new_config({"method": name}) for name in ("egbad", "double-ae"))

    assert (egbad.alpha, egbad.warm_start, egbad.locator, egbad.lambda_) == (0.0, 0.0, False, 0.1)
    assert (double_ae.alpha, double_ae.warm_start, double_ae.locator, double_ae.lambda_) == (1.0, 0.0, False, 0.0)
    ours = load("cbigan")
    for name in ("egbad", "double-ae"):
        theirs = load(name)
        assert (theirs.ge_player, theirs.d_player, theirs.encoder, theirs.critic, theirs.scorer) == (
            ours.ge_player, ours.d_player, ours.encoder, ours.critic, ours.scorer
        )  # fmt: skip
    assert phase_at(egbad, 0.0).name == "adversarial"
    assert phase_at(double_ae, 0.0).name == "consistency"


def test_a_method_goes_before_the_preset_and_options_before_its_defaults() -> None:
    config = new_config({"method": "f-anogan", "preset": "paper", "warm_start": 0.25})

    assert (config.width, config.warm_start, config.d_iter) == (64, 0.25, 5)
    assert not new_config({"method": "egbad", "preset": "default"}).locator


@pytest.mark.parametrize("name", OTHERS)
def test_what_makes_a_method_cannot_be_changed(name: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"alpha is .* for the method {name}, not 0.5; drop the option"):
        new_config({"method": name, "alpha": 0.5})
    with pytest.raises(typer.BadParameter, match="locator is False"):
        new_config({"method": name, "locator": True})


def test_f_anogan_needs_both_phases() -> None:
    for share in (0.0, 1.0):
        with pytest.raises(typer.BadParameter, match="time for both"):
            new_config({"method": "f-anogan", "warm_start": share})


def test_the_command_line_refuses_what_cannot_be(data: Path, tmp_path: Path) -> None:
    for options, words in (
        (["--method", "best"], "'best' is none of cbigan, egbad, double-ae"),
        (["--method", "f-anogan", "--devices", "2"], "on one device"),
    ):
        result = CliRunner().invoke(app, ["fit", "--data", str(data), "--out", str(tmp_path / "run"), *options])
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_config_and_a_bundle_of_before_are_cbigans() -> None:
    assert FitConfig.model_validate_json("{}").method == "cbigan"
    manifest = json.loads(Path(engines.bundled.__path__[0], "brick", "manifest.json").read_bytes())
    for field in ("method", "folded"):
        del manifest["network"][field]
    network = Manifest.model_validate(manifest).network
    assert (network.method, network.folded) == ("cbigan", False)


def test_f_anogan_trains_e_last() -> None:
    config = new_config({"method": "f-anogan", "warm_start": 0.25, "final_lr": 0.1, "steps": 100})

    assert [(phase_at(config, f).name, phase_at(config, f).warm) for f in (0.0, 0.74, 0.75, 1.0)] == [
        ("adversarial", False), ("adversarial", False), ("encoder", True), ("encoder", True)
    ]  # fmt: skip
    assert phase_at(config, 0.375).lr == pytest.approx(config.lr * 0.55)
    assert phase_at(config, 0.875).lr == pytest.approx(config.warm_lr * 0.55)


# Losses.


def test_squared_error_by_numpy() -> None:
    encoder, generator = Encoder(ARCH).double(), Generator(ARCH).double()
    x, z, _ = batch()

    losses = SquaredErrorPlayer(encoder, generator)(x, z, 1.0, ImageCritic(ARCH))

    y = generator(encoder(x)).detach().numpy()
    assert losses["total"].item() == pytest.approx(((x.numpy() - y) ** 2).sum() / 3)


def ssim_of_wang(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wang et al., eq. 13, of two images (H, W) in 0..1; the window is cut off at the border and its rest weighs 1."""
    height, width = x.shape
    found = np.empty_like(x)
    for i in range(height):
        for j in range(width):
            rows, columns = (slice(max(at - 5, 0), min(at + 6, end)) for at, end in ((i, height), (j, width)))
            v, u = np.mgrid[rows, columns]
            w = np.exp(-((v - i) ** 2 + (u - j) ** 2) / (2 * 1.5**2))
            w /= w.sum()
            a, b = x[rows, columns], y[rows, columns]
            mean_a, mean_b = (w * a).sum(), (w * b).sum()
            var_a, var_b = (w * (a - mean_a) ** 2).sum(), (w * (b - mean_b) ** 2).sum()
            covariance = (w * (a - mean_a) * (b - mean_b)).sum()
            found[i, j] = ((2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)) / (
                (mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)
            )
    return found


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_dissimilarity_by_the_formula_of_wang(dtype: torch.dtype, error: float) -> None:
    x = torch.rand(2, 3, 20, 20, dtype=torch.float64) * 2 - 1
    y = (x + 0.4 * torch.randn_like(x)).clamp(-1, 1)
    x[1, 0], y[1, 0] = 0.99, 0.99  # white, where float32 has least to say of the variance
    y[1, 1] = -x[1, 1]

    found = Dissimilarity(20)(x.to(dtype), y.to(dtype))

    assert found.dtype == dtype
    for n in range(2):
        for c in range(3):
            expected = 1 - ssim_of_wang((x[n, c].numpy() + 1) / 2, (y[n, c].numpy() + 1) / 2)
            np.testing.assert_allclose(found[n, c].numpy(), expected, atol=error)


def test_dissimilarity_is_0_of_the_same_and_its_player_means_it() -> None:
    encoder, generator = Encoder(ARCH).double(), Generator(ARCH).double()
    x, z, _ = batch(1)
    dissimilarity = Dissimilarity(64)

    assert dissimilarity(x, x).abs().max() == 0
    losses = SsimPlayer(encoder, generator)(x, z, 1.0, ImageCritic(ARCH))
    assert SsimPlayer(encoder, generator)(x, None, 1.0, ImageCritic(ARCH)).keys() == {"total", "squared_error"}
    expected = dissimilarity(x, generator(encoder(x)))
    assert losses["total"].item() == pytest.approx(expected.sum().item())
    assert losses["dissimilarity"].item() == pytest.approx(expected.mean().item())


def test_ganomaly_by_numpy() -> None:
    encoder, generator, critic = EncoderPair(ARCH).double(), Generator(ARCH).double(), ImageCritic(ARCH).double()
    x, z, eps = batch()

    losses = GanomalyPlayer(encoder, generator)(x, z, 0.0, critic)
    d = RealFakePlayer(critic)(x, encoder(x), generator(encoder(x)), z, eps, 10.0)

    y = generator(encoder(x))
    e, again, f_x, f_y = (t.detach().numpy() for t in (encoder(x), encoder.second(y), critic.trunk(x), critic.trunk(y)))
    parts = (f_x - f_y) ** 2, np.abs((x - y).detach().numpy()), (e - again) ** 2
    for name, part in zip(("feature_matching", "context", "encoding"), parts, strict=True):
        assert losses[name].item() == pytest.approx(part.mean())
    assert losses["total"].item() == pytest.approx(parts[0].mean() + 50 * parts[1].mean() + parts[2].mean())
    real, fake = (1 / (1 + np.exp(-critic(t, None).detach().numpy())) for t in (x, y))
    assert d["total"].item() == pytest.approx(-(np.log(real).mean() + np.log(1 - fake).mean()) / 2)


def test_f_anogan_by_numpy() -> None:
    encoder, generator, critic = Encoder(ARCH).double(), Generator(ARCH).double(), ImageCritic(ARCH).double()
    x, z, eps = batch()
    player = IziPlayer(encoder, generator)

    game, izi = player(x, z, 0.0, critic), player(x, None, 0.0, critic)
    d = ImageCriticPlayer(critic)(x, z, generator(z).detach(), z, eps, 10.0)

    assert game["total"].item() == pytest.approx(-critic(generator(z)).mean().item())
    y = generator(encoder(x))
    features = (critic.features(x, "block5") - critic.features(y, "block5")).detach().numpy()
    pixels = (x - y).detach().numpy()
    assert izi["total"].item() == pytest.approx((pixels**2).mean() + (features**2).mean())
    wasserstein = (critic(x).mean() - critic(generator(z)).mean()).item()
    assert d["wasserstein"].item() == pytest.approx(wasserstein)
    assert d["total"].item() == pytest.approx(10 * d["gradient_penalty"].item() - wasserstein)
    izi["total"].backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.requires_grad for p in generator.parameters())
    assert any(p.grad is not None and p.grad.any() for p in encoder.parameters())


class LinearCritic(nn.Module):
    def forward(self, x: Tensor, _z: Tensor | None) -> Tensor:
        return 0.25 * x.flatten(1).sum(1)


def test_the_penalty_of_a_linear_critic() -> None:
    x, _, eps = batch()
    slope = 0.25 * math.sqrt(3 * 64 * 64)

    penalty = image_gradient_penalty(LinearCritic(), x, -x, eps)  # type: ignore[arg-type]

    assert penalty.item() == pytest.approx((slope - 1) ** 2)


class NoHost(TorchDispatchMode):
    """Fails where a value is read, or a constant comes from the host; neither can be recorded for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert name not in {"aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::equal"}, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_steps_can_be_recorded(name: str) -> None:
    method = load(name)
    encoder, generator, critic = method.encoder(ARCH), Generator(ARCH), method.critic(ARCH)
    ge_player, d_player = method.ge_player(encoder, generator), method.d_player(critic)
    x, z, eps = (t.float() for t in batch(2))

    with NoHost():
        for prior in (z, None):
            critic.requires_grad_(requires_grad=False)
            ge_player(x, prior, 0.5, critic)["total"].backward()
            critic.requires_grad_(requires_grad=True)
        with torch.no_grad():
            encoded, generated = method.fakes(encoder, generator, x, z)
        d_player(x, encoded, generated, z, eps, 10.0)["total"].backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHost():
        x.sum().item()


@pytest.mark.parametrize("name", OTHERS)
def test_losses_in_bf16_are_those_of_float32(name: str, data: Path) -> None:
    found = []
    for precision in ("32-true", "bf16-mixed"):
        trainer = make_trainer(data, name, precision, d_iter=0)
        found.append([trainer.advance(phase_at(trainer.config, fraction)) for fraction in (0.0, 0.9)])

    for exact, rounded in zip(*found, strict=True):
        assert exact.keys() == rounded.keys()
        for loss, value in exact.items():
            assert rounded[loss].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), loss
    if name == "ae-ssim":  # bfloat16 has eight bits, which would leave nothing of small variances
        assert found[1][1]["dissimilarity"].item() == pytest.approx(found[0][1]["dissimilarity"].item(), rel=5e-3)


# From training to the bundle.


@pytest.fixture(scope="module", params=OTHERS)
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    trainer = make_trainer(data, request.param, steps=60)  # fewer leave GANomaly latents that differ by rounding
    before = weights(trainer)
    assert train(trainer, folder, on_step=lambda progress: None)
    for net in range(2):  # E and G
        assert changed(before, weights(trainer), net)
    assert changed(before, weights(trainer), 2) == (trainer.config.alpha < 1.0)  # D
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "weave"
    return export_run(run, out, "weave", precision="fp16")


def scores_by_torch(run: Path, patches: np.ndarray) -> PatchScores:
    trained = checkpoint.load_trained(run)
    networks = (trained.encoder, trained.generator, trained.critic)
    scorer = load(trained.config.method).scorer(*networks, trained.config.feature_layer).double()
    with torch.no_grad():
        *outputs, _ = scorer(torch.from_numpy(patches))
    return PatchScores(*(output.numpy().astype(np.float32) for output in outputs))


def test_the_bundle_scores_as_torch_does(run: Path, bundle: Bundle) -> None:
    config = checkpoint.load_trained(run).config
    patches = np.concatenate([some_patches(3), bundle.selftest.patches])
    expected = scores_by_torch(run, patches)

    engine = open_engine(bundle, EngineSettings(backend="onnxruntime"))
    found = engine.score(patches)
    engine.close()

    for tensor in bundle.manifest.outputs:
        truth = getattr(expected, tensor.name)
        assert np.abs(getattr(found, tensor.name) - truth).max() < 1e-4 * np.abs(truth).max(), tensor.name
    assert bundle.manifest.network.method == config.method
    assert (bundle.manifest.smoothing is not None) == (config.method == "ae-ssim") == (found.anomaly_map is not None)
    assert bundle.variant("fp16") is not None, "the gate refused the graph for TensorRT"
    grid = Tiler(bundle.manifest.preprocessing).grid((64, 64))
    judged, truth = (
        Judging.of(bundle.manifest)(PatchScores(*(getattr(s, t.name)[:1] for t in bundle.manifest.outputs)), grid)
        for s in (found, expected)
    )
    assert judged.patch_scores == pytest.approx(truth.patch_scores, rel=1e-3)


def test_scores_by_numpy(run: Path, bundle: Bundle) -> None:
    trained = checkpoint.load_trained(run)
    patches = some_patches(3)
    x = torch.from_numpy(patches.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1)
    encoder, generator, critic = (net.double() for net in (trained.encoder, trained.generator, trained.critic))
    with torch.no_grad():
        y = generator(encoder(x))
        features = (
            critic.features(x, trained.config.feature_layer) - critic.features(y, trained.config.feature_layer)
        ).numpy()
        if isinstance(encoder, EncoderPair):
            latents = (encoder(x) - encoder.second(y)).numpy()
    pixels = (x - y).numpy()
    of = {
        "egbad": lambda: 0.9 * np.abs(pixels).sum((1, 2, 3)) + 0.1 * np.abs(features).sum((1, 2, 3)),
        "double-ae": lambda: np.abs(pixels).sum((1, 2, 3)),
        "ae-l2": lambda: np.abs(pixels).sum((1, 2, 3)),
        "ae-ssim": lambda: Dissimilarity(64)(x, y).mean((1, 2, 3)).numpy(),
        "ganomaly": lambda: np.abs(latents).sum(1),
        "f-anogan": lambda: (pixels**2).mean((1, 2, 3)) + (features**2).mean((1, 2, 3)),
    }

    found = scores_by_torch(run, patches)

    expected = of[trained.config.method]()
    np.testing.assert_allclose(found.anomaly_score(bundle.manifest.lambda_), expected, rtol=1e-5)
    if found.anomaly_map is not None:
        np.testing.assert_allclose(found.anomaly_map.mean((1, 2)), expected, rtol=1e-5)


def test_the_model_card_names_the_method(run: Path, bundle: Bundle) -> None:
    method = load(checkpoint.load_trained(run).config.method)
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert f"Method: {method.source}." in card
    of_patches = "" if checkpoint.load_trained(run).config.method == "ae-ssim" else "the worst patch's "
    assert f"| score of a frame | {of_patches}{method.score}" in card


@pytest.mark.parametrize("name", OTHERS)
def test_a_resumed_run_ends_with_the_same_weights(name: str, data: Path, tmp_path: Path) -> None:
    whole, first, second = (make_trainer(data, name, steps=12, width=1) for _ in range(3))
    train(whole, tmp_path, on_step=lambda progress: None)

    assert not train(
        first, tmp_path, on_step=lambda progress: signal.raise_signal(signal.SIGINT) if progress.step == 8 else None
    )
    second.restore(checkpoint.load(tmp_path / checkpoint.CHECKPOINT_FILE))
    assert second.step == 8
    train(second, tmp_path, on_step=lambda progress: None)

    for key, value in weights(whole).items():
        assert torch.equal(value, weights(second)[key]), key


def test_f_anogan_trains_one_after_the_other(data: Path) -> None:
    trainer = make_trainer(data, "f-anogan", d_iter=0, steps=4, width=1)
    before = weights(trainer)
    for fraction in (0.0, 0.25):
        trainer.advance(phase_at(trainer.config, fraction))
    between = weights(trainer)
    for fraction in (0.5, 0.75):
        trainer.advance(phase_at(trainer.config, fraction))
    after = weights(trainer)

    assert [changed(before, between, net) for net in range(3)] == [False, True, True]  # E, G, D
    assert [changed(between, after, net) for net in range(3)] == [True, False, False]


def test_ganomalys_second_encoder_is_trained_and_averaged(data: Path) -> None:
    trainer = make_trainer(data, "ganomaly", steps=2, width=1)
    before = weights(trainer)
    for fraction in (0.0, 0.5):
        trainer.advance(phase_at(trainer.config, fraction))
    after = weights(trainer)

    for name in ("0.second.dense1.weight", "3.second.dense1.weight"):  # and with averaged weights
        assert not torch.equal(before[name], after[name])
