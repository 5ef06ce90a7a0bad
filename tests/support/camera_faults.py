"""What a camera does to its pictures when something is wrong, each at a strength. Pictures are uint8 (H, W, 3), BGR."""

import cv2
import numpy as np


def dimmed(image: np.ndarray, factor: float, seed: int = 0) -> np.ndarray:
    """Less light, 0..1 of it, and the sensor's noise: the lamp, or the cap on the lens."""
    noise = np.random.default_rng(seed).normal(0, 1.5, image.shape[:2])[..., None]
    return np.clip(image * factor + noise, 0, 255).astype(np.uint8)


def overexposed(image: np.ndarray, factor: float) -> np.ndarray:
    """That many times the light."""
    return np.clip(image * float(factor), 0, 255).astype(np.uint8)


def defocused(image: np.ndarray, sigma: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Out of focus by a Gaussian of ``sigma`` pixels; the sensor's noise stays sharp."""
    blurred = cv2.GaussianBlur(image, (0, 0), sigma).astype(np.float32)
    blurred += np.random.default_rng(seed).normal(0, noise, image.shape[:2])[..., None]
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def shifted(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """The view moved by whole pixels; what comes into view repeats the edge."""
    rows = (np.arange(image.shape[0]) - down).clip(0, image.shape[0] - 1)
    columns = (np.arange(image.shape[1]) - right).clip(0, image.shape[1] - 1)
    return np.ascontiguousarray(image[rows][:, columns])


def flickering(image: np.ndarray, amplitude: float, number: int) -> np.ndarray:
    """Brighter and darker by ``amplitude`` (0..1) in turn."""
    return overexposed(image, 1 + amplitude * (-1) ** number)


def recoloured(image: np.ndarray) -> np.ndarray:
    """Red and blue exchanged."""
    return np.ascontiguousarray(image[..., ::-1])


def tinted(image: np.ndarray, blue: float, red: float) -> np.ndarray:
    """A material of another colour, from a grey picture: factors on blue and red."""
    return np.clip(image * np.array([blue, 1.0, red]), 0, 255).astype(np.uint8)


def railed(image: np.ndarray, seed: int = 0) -> np.ndarray:
    """The picture between two rails with rivets that stand still: landmarks."""
    framed = image.copy()
    height, width = image.shape[:2]
    rail = width // 8
    for left in (0, width - rail):
        framed[:, left : left + rail] = 60
        for place in range(5):
            x, y = left + rail // 2, height * (2 * place + 1) // 10 + (height // 30 if left else 0)
            cv2.circle(framed, (x, y), rail // 4, (190, 190, 190), -1)
    noise = np.random.default_rng(seed).normal(0, 2, (height, width))[..., None]
    edge = np.ones((1, width, 1))
    edge[:, rail : width - rail] = 0
    return np.clip(framed + noise * edge, 0, 255).astype(np.uint8)


def stale_from(image: np.ndarray, before: np.ndarray, share: float) -> np.ndarray:
    """The last ``share`` of the picture not arrived, as FFmpeg fills it: from the picture before, in blocks of 16."""
    blocks_high, blocks_wide = -(-image.shape[0] // 16), -(-image.shape[1] // 16)
    arrived = np.arange(blocks_high * blocks_wide) < (1 - share) * blocks_high * blocks_wide
    mask = np.kron(arrived.reshape(blocks_high, blocks_wide), np.ones((16, 16), bool))
    mask = mask[: image.shape[0], : image.shape[1]]
    return np.where(mask[..., None], image, before)
