"""E, G and D in plain NumPy, float64: an independent statement of the architecture to hold the torch networks against.

Layout and names follow the authors' Keras code: NHWC, kernels HWIO, dense (in, out).
"""

from itertools import pairwise

import numpy as np

Weights = dict[str, np.ndarray]
SLOPE = 0.2


def weight_shapes(width: int, latent: int = 64, *, bias: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights of the texture networks; without ``bias`` only where the authors have one."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, biased: bool = False) -> None:
        shapes[f"{name}.kernel"] = shape
        if biased or bias:
            shapes[f"{name}.bias"] = shape[-1:]

    def blocks(role: str, filters: list[int]) -> None:
        for i, (n_in, n_out) in enumerate(pairwise(filters)):
            layer(f"{role}.block{i}.skip", 1, 1, n_in, n_out)
            layer(f"{role}.block{i}.conv1", 3, 3, n_in, n_out)
            layer(f"{role}.block{i}.conv2", 3, 3, n_out, n_out)
            layer(f"{role}.block{i}.conv3", 1, 1, n_out, n_out, biased=True)

    widths = [width * w for w in (1, 2, 3, 4, 8, 16)]
    blocks("E", [3, *widths])
    layer("E.dense0", 64 * width, 16 * width)
    layer("E.dense1", 16 * width, latent, biased=True)
    layer("G.dense0", latent, 64 * width)
    blocks("G", [16 * width, *widths[::-1]])
    layer("G.out", 1, 1, width, 3, biased=True)
    for i in range(3):
        layer(f"D.latent{i}", latent if i == 0 else 512, 512)
    blocks("D", [3, *widths])
    layer("D.dense0", 64 * width + 512, 16 * width)
    layer("D.dense1", 16 * width, 1, biased=True)
    return shapes


def formula_weights(width: int, *, bias: bool = False) -> Weights:
    """Weights from a formula, so that a test needs no file: sines of the running index, scaled by the fan-in."""
    weights, start = {}, 0.0
    for name, shape in weight_shapes(width, bias=bias).items():
        n = int(np.prod(shape))
        fan_in = max(1, n // shape[-1])
        amplitude = 0.2 if name.endswith("bias") else np.sqrt(3.0 / fan_in)
        weights[name] = amplitude * np.sin(start + 1.7 * np.arange(n) ** 1.1).reshape(shape)
        start += 0.37
    return weights


def formula_inputs(n: int = 2, latent: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 64, 64, 3) in [-1, 1] and latents (n, latent) from a formula."""
    i, y, x, c = np.meshgrid(*map(np.arange, (n, 64, 64, 3)), indexing="ij")
    images = np.sin(0.31 * x + 0.17 * y * (i + 1) + 0.9 * c) * np.cos(0.05 * x * y / (i + 2))
    return images, 1.5 * np.sin(2.3 * np.arange(n * latent)).reshape(n, latent)


def lrelu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, SLOPE * x)


def conv(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    kernel = w[f"{name}.kernel"]
    k = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))  # (n, h, w, c, k, k)
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True) + w.get(f"{name}.bias", 0.0)


def dense(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[f"{name}.kernel"] + w.get(f"{name}.bias", 0.0)


def block(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    y = lrelu(conv(x, w, f"{name}.conv1"))
    y = lrelu(conv(y, w, f"{name}.conv2"))
    return lrelu(conv(y, w, f"{name}.conv3") + conv(x, w, f"{name}.skip"))


def pool(x: np.ndarray) -> np.ndarray:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: np.ndarray) -> np.ndarray:
    """Double by bilinear interpolation with half-pixel centres."""
    for axis in (1, 2):
        x = np.moveaxis(x, axis, 0)
        before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
        both = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=1)
        x = np.moveaxis(both.reshape(-1, *x.shape[1:]), 0, axis)
    return x


def trunk(x: np.ndarray, w: Weights, role: str) -> np.ndarray:
    for i in range(5):
        x = pool(block(x, w, f"{role}.block{i}"))
    x = block(x, w, f"{role}.block5")
    return x.reshape(len(x), -1)


def encoder(x: np.ndarray, w: Weights) -> np.ndarray:
    return dense(lrelu(dense(trunk(x, w, "E"), w, "E.dense0")), w, "E.dense1")


def generator(z: np.ndarray, w: Weights) -> np.ndarray:
    x = dense(z, w, "G.dense0")
    x = block(x.reshape(len(z), 2, 2, -1), w, "G.block0")
    for i in range(1, 6):
        x = block(upsample(x), w, f"G.block{i}")
    return np.tanh(conv(x, w, "G.out"))


def critic(x: np.ndarray, z: np.ndarray, w: Weights) -> np.ndarray:
    for i in range(3):
        z = lrelu(dense(z, w, f"D.latent{i}"))
    joint = np.concatenate([trunk(x, w, "D"), z], axis=1)
    return dense(lrelu(dense(joint, w, "D.dense0")), w, "D.dense1")[:, 0]


def features(x: np.ndarray, w: Weights) -> np.ndarray:
    """The authors' f_D: D.block0.conv1, before its activation."""
    return conv(x, w, "D.block0.conv1")
