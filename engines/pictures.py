"""Pictures for people: a map over what it was made from, as JPEG."""

import cv2
import numpy as np

from engines.engine import Float32Array, UInt8Array

MAX_OPACITY = 0.8


def relative(heat: Float32Array, score: float, threshold: float | None) -> Float32Array:
    """A map as a share of what is shown in full colour.

    That is its hottest point, or, where the frame scores below the threshold, one larger in the same proportion: a good
    frame stays pale instead of showing its noise in full colour.

    Args:
        heat: float32 (h, w), the higher the less normal; may be negative.
        score: of the frame.
        threshold: that it is judged by; None where there is none.

    Returns:
        float32 (h, w), 0..1.
    """
    heat = heat.clip(0)
    top = float(heat.max())
    if threshold is not None and 0 < score < threshold:
        top *= threshold / score
    return heat / np.float32(top) if top > 0 else np.zeros_like(heat)


def blend(picture: UInt8Array, heat: Float32Array) -> UInt8Array:
    """Lay a colour map over a picture, the more opaque the hotter.

    Args:
        picture: uint8 (H, W, 3), BGR; not changed.
        heat: float32 (H, W), 0..1; what lies beyond counts as the end.
    """
    colours = cv2.applyColorMap((heat * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    # Rising faster than in proportion, so that ordinary noise leaves the surface as it looks.
    opacity = (MAX_OPACITY * heat.clip(0, 1) ** 1.5)[..., None]
    return (picture + opacity * (colours.astype(np.float32) - picture)).round().astype(np.uint8)


def shrunk(picture: UInt8Array, max_side: int) -> UInt8Array:
    """The picture, made smaller where a side is longer than ``max_side`` pixels."""
    height, width = picture.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def encode_jpeg(picture: UInt8Array, max_side: int, quality: int) -> bytes:
    """JPEG of a picture, shrunk so that no side is longer than ``max_side`` pixels.

    Args:
        picture: uint8 (H, W, 3), BGR.
        max_side: pixels.
        quality: 1..100.
    """
    picture = shrunk(picture, max_side)
    ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a picture of shape {picture.shape} as JPEG")
    return data.tobytes()


def encode_png(image: UInt8Array) -> bytes:
    """PNG of a frame, pixel for pixel: uint8 (H, W, 3), BGR."""
    ok, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a frame of shape {image.shape} as PNG")
    return data.tobytes()
