"""Networks, losses, gradients and updates are the authors' function.

Without any file: against an independent NumPy statement of the architecture, on weights from a formula. With the
environment variable ``CBIGAN_REFERENCE`` naming the arrays computed by the authors' own TensorFlow code: against those.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from tests.support import numpy_cbigan as reference
from tests.support.keras_weights import Nets, load, parameter, to_torch
from train.architecture import Architecture
from train.config import FitConfig
from train.data import TrainingImages
from train.fit import Phase, Trainer
from train.losses import CriticPlayer, GeneratorEncoderPlayer, gradient_penalty, l1
from train.networks import Critic, Encoder, Generator

NOT_GIVEN = "CBIGAN_REFERENCE does not name the authors' arrays"


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).double().permute(0, 3, 1, 2).contiguous()


def relative_error(actual: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def networks(*, bias: bool) -> Nets:
    arch = Architecture(width=3, bias=bias)
    return Encoder(arch), Generator(arch), Critic(arch)


@pytest.mark.parametrize("bias", [False, True])
def test_networks_equal_the_numpy_statement(bias: bool):
    weights = reference.formula_weights(3, bias=bias)
    E, G, D = load(networks(bias=bias), weights)
    images, z = reference.formula_inputs()
    x = nchw(images)

    encoded = reference.encoder(images, weights)
    generated = reference.generator(z, weights)
    rebuilt = reference.generator(encoded, weights)
    assert np.abs(encoded).max() > 0.1  # the comparison is about something
    assert np.std(generated) > 0.01
    tz = torch.from_numpy(z)
    assert relative_error(E(x), encoded) < 1e-12
    assert relative_error(G(tz).permute(0, 2, 3, 1), generated) < 1e-12
    assert relative_error(D(x, tz), reference.critic(images, z, weights)) < 1e-12
    features = reference.features(images, weights) - reference.features(rebuilt, weights)
    ours = D.features(x, "block0.conv1") - D.features(G(E(x)), "block0.conv1")
    assert relative_error(ours.permute(0, 2, 3, 1), features) < 1e-11


def test_losses_follow_the_equations():
    weights = reference.formula_weights(3)
    E, G, D = load(networks(bias=False), weights)
    images, z = reference.formula_inputs()
    x, tz = nchw(images), torch.from_numpy(z)
    encoded, generated = reference.encoder(images, weights), reference.generator(z, weights)
    real, fake = reference.critic(images, encoded, weights).mean(), reference.critic(generated, z, weights).mean()
    image_term = np.abs(images - reference.generator(encoded, weights)).sum((1, 2, 3)).mean()
    latent_term = np.abs(z - reference.encoder(generated, weights)).sum(1).mean()

    for alpha in (0.0, 1e-4, 0.3, 1.0):
        losses = GeneratorEncoderPlayer(E, G)(x, tz, alpha, D)
        expected = (1 - alpha) * (real - fake) + alpha * (image_term + latent_term)  # eq. 5, 10-13
        assert float(losses["total"].detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)

    eps = torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    losses = CriticPlayer(D)(x, E(x).detach(), G(tz).detach(), tz, eps, 10.0)
    penalty = float(losses["gradient_penalty"].detach())
    assert float(losses["total"].detach()) == pytest.approx(fake - real + 10 * penalty, rel=1e-9)  # eq. 6


def test_gradient_penalty_pairs_images_with_prior_latents():
    """Central differences of the NumPy critic along random directions, at x with prior z and G(z) with E(x)."""
    weights = reference.formula_weights(3)
    E, G, D = load(networks(bias=False), weights)
    images, z = reference.formula_inputs()
    encoded, generated = reference.encoder(images, weights), reference.generator(z, weights)
    eps = np.array([0.25, 0.75])
    x_hat = eps[:, None, None, None] * images + (1 - eps)[:, None, None, None] * generated
    z_hat = eps[:, None] * z + (1 - eps)[:, None] * encoded

    leaf_x, leaf_z = nchw(x_hat).requires_grad_(), torch.from_numpy(z_hat).requires_grad_()
    dx, dz = torch.autograd.grad(D(leaf_x, leaf_z).sum(), (leaf_x, leaf_z))
    rng = np.random.default_rng(0)
    direction_x, direction_z = rng.normal(size=x_hat.shape), rng.normal(size=z_hat.shape)
    step = 1e-6
    slope = (
        reference.critic(x_hat + step * direction_x, z_hat + step * direction_z, weights)
        - reference.critic(x_hat - step * direction_x, z_hat - step * direction_z, weights)
    ) / (2 * step)
    ours = (dx * nchw(direction_x)).sum((1, 2, 3)) + (dz * torch.from_numpy(direction_z)).sum(1)
    assert relative_error(ours, slope) < 1e-4  # a kink of LeakyReLU may lie within the step

    norm = (dx.flatten(1).square().sum(1) + dz.square().sum(1)).sqrt()
    expected = float((norm - 1).square().mean())
    tz = torch.from_numpy(z)
    penalty = gradient_penalty(
        D, nchw(images), E(nchw(images)).detach(), G(tz).detach(), tz, torch.from_numpy(eps)[:, None]
    )
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def arrays() -> Iterator[dict[str, np.ndarray]]:
    path = os.environ.get("CBIGAN_REFERENCE")
    if not path or not Path(path).is_file():
        pytest.skip(NOT_GIVEN)
    with np.load(path, allow_pickle=False) as file:
        yield dict(file)


class Reference:
    """The authors' arrays beside our networks with their weights, in float64 or float32."""

    def __init__(self, arrays: dict[str, np.ndarray], dtype: torch.dtype) -> None:
        self.arrays = arrays
        self.prefix = "f64/" if dtype == torch.float64 else ""
        weights = {name: arrays[f"w/{name}"] for name in map(str, arrays["weight_order"])}
        self.names = list(weights)
        slope = float(np.float32(0.2))
        self.nets: Nets = tuple(net.to(dtype) for net in load(networks(bias=False), weights, slope))
        self.x = nchw(arrays["x"]).to(dtype)
        self.z, self.eps = (torch.from_numpy(arrays[k]).to(dtype) for k in ("z", "gp_eps"))
        self.tolerance = 1e-9 if dtype == torch.float64 else 2e-5

    def expected(self, name: str) -> np.ndarray:
        return self.arrays[self.prefix + name]

    def check(self, name: str, actual: torch.Tensor) -> None:
        error = relative_error(actual, self.expected(name))
        assert error < self.tolerance, f"{name}: {error:.2e}"


@pytest.fixture(params=[torch.float64, torch.float32], ids=["f64", "f32"])
def authors(request: pytest.FixtureRequest, arrays: dict[str, np.ndarray]) -> Reference:
    return Reference(arrays, request.param)


def test_forward_values_are_the_authors(authors: Reference):
    E, G, D = authors.nets
    encoded, generated = E(authors.x), G(authors.z)
    authors.check("E_x", encoded)
    authors.check("G_z", generated.permute(0, 2, 3, 1))
    authors.check("G_E_x", G(encoded).permute(0, 2, 3, 1))
    authors.check("E_G_z", E(generated))
    authors.check("D_x_Ex", D(authors.x, encoded)[:, None])
    authors.check("D_Gz_z", D(generated, authors.z)[:, None])
    pixel = l1(authors.x, G(encoded))
    feature = l1(D.features(authors.x, "block0.conv1"), D.features(G(encoded), "block0.conv1"))
    authors.check("pixel_distance", pixel)
    authors.check("feature_distance", feature)
    authors.check("latent_distance", l1(authors.z, E(generated)))
    rows = [(1 - lam) * pixel + lam * feature for lam in authors.arrays["lambdas"]]
    authors.check("A_all_lambdas", torch.stack(rows))


def test_losses_and_gradients_are_the_authors(authors: Reference):
    E, G, D = authors.nets
    ge = GeneratorEncoderPlayer(E, G)(authors.x, authors.z, 1e-4, D)
    authors.check("loss/images_reconstruction_loss", ge["image_consistency"])
    authors.check("loss/latent_reconstruction_loss", ge["latent_consistency"])
    expected = float(authors.expected("loss/generator_encoder_loss"))  # nearly cancels: absolute tolerance
    assert float(ge["adversarial"].detach()) == pytest.approx(expected, abs=10 * authors.tolerance)
    d = CriticPlayer(D)(authors.x, E(authors.x).detach(), G(authors.z).detach(), authors.z, authors.eps, 10.0)
    authors.check("loss/gradient_penalty_loss", d["gradient_penalty"])
    authors.check("loss/discriminator_total_loss", d["total"])

    grads = {}
    for total, roles in ((ge["total"], "EG"), (d["total"], "D")):
        names = [n for n in authors.names if n[0] in roles]
        params = [parameter(authors.nets, n) for n in names]
        found = torch.autograd.grad(total, params, allow_unused=True, retain_graph=True)
        grads |= dict(zip(names, found, strict=True))
    # D.dense1.bias: the losses are differences of D, so its gradient is exactly zero (autograd: rounding only).
    for name in authors.names:
        grad = grads[name]
        if name == "D.dense1.bias":
            assert grad is None or abs(float(grad)) < 1e-6
            continue
        norm = float(authors.expected(f"gradnorm/{name}"))
        assert float(grad.norm()) == pytest.approx(norm, rel=10 * authors.tolerance), name
        if f"grad/{name}" in authors.arrays:  # stored in float32 only
            whole = to_torch(name, authors.arrays[f"grad/{name}"]).numpy()
            assert relative_error(grad.double(), whole) < 1e-4, name


def test_frame_scores_are_the_authors(authors: Reference):
    E, G, D = authors.nets
    frame = authors.arrays["frame_u8"][0].astype(np.float32) * np.float32(1 / 127.5) - 1
    patches = frame.reshape(8, 64, 8, 64, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 64, 3)
    x = nchw(patches).to(authors.x.dtype)
    with torch.no_grad():
        rebuilt = G(E(x))
        pixel = l1(x, rebuilt)
        feature = l1(D.features(x, "block0.conv1"), D.features(rebuilt, "block0.conv1"))
    authors.check("frame_patch_pixel", pixel)
    authors.check("frame_patch_feature", feature)
    rows = [[((1 - lam) * pixel + lam * feature).max()] for lam in authors.arrays["lambdas"]]
    authors.check("frame_A_all_lambdas", torch.tensor(rows, dtype=x.dtype))


def test_five_training_steps_are_the_authors(authors: Reference):
    """The optimizers: Adam as Keras has it, both players from the weights before the step."""
    config = FitConfig.model_validate(
        {
            "preset": "reference",
            "width": 3,
            "bias": False,
            "folded": False,
            "alpha": 1e-4,
            "gp_weight": 10.0,
            "lr": 1e-4,
            "steps": 5,
        }
        | {"betas_ge": (0.0, 0.1), "betas_d": (0.0, 0.9), "adam_eps": 1e-7}
    )
    data = TrainingImages([np.zeros((64, 64, 3), np.uint8)], [Path("x.png")], "rgb", "0" * 64, [])
    double = authors.x.dtype == torch.float64
    trainer = Trainer(config, data, Fabric(accelerator="cpu", devices=1, precision="64-true" if double else "32-true"))
    for ours, theirs in zip((trainer.encoder, trainer.generator, trainer.critic), authors.nets, strict=True):
        ours.load_state_dict(theirs.state_dict())
        for module in ours.modules():
            if isinstance(module, torch.nn.LeakyReLU):
                module.negative_slope = float(np.float32(0.2))
    schedule = [(True, True), (True, False), (True, False), (False, True), (False, False)]
    # The authors' flags are (D, G and E); in their trace the images' loss stands still while only D trains.
    phase = Phase("adversarial", config.lr, warm=False)
    for i, (train_d, train_ge) in enumerate(schedule):
        E, G, D = trainer.encoder, trainer.generator, trainer.critic
        ge = GeneratorEncoderPlayer(E, G)(authors.x, authors.z, config.alpha, D)
        d = CriticPlayer(D)(authors.x, E(authors.x).detach(), G(authors.z).detach(), authors.z, authors.eps, 10.0)
        tolerance = 1e-4
        for name, value in {
            "images_reconstruction_loss": ge["image_consistency"],
            "latent_reconstruction_loss": ge["latent_consistency"],
            "generator_encoder_loss": ge["adversarial"],
            "gradient_penalty_loss": d["gradient_penalty"],
            "discriminator_total_loss": d["total"],
        }.items():
            expected = float(authors.expected(f"trace/{name}")[i])
            assert float(value.detach()) == pytest.approx(expected, rel=tolerance, abs=2e-4), (i, name)
        trainer.update(authors.x, authors.z, authors.eps, phase, train_ge=train_ge, train_d=train_d)
