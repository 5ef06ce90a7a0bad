"""The picture of an inspection: the frame, where it departs from what the model knows, boxes and the verdict."""

from collections.abc import Sequence

import cv2
import numpy as np

from engines.engine import Float32Array, UInt8Array
from engines.geometry import Box
from engines.pictures import blend, relative
from station.frames import Inspection

MIN_SIDE = 480
"""Smaller frames are enlarged before anything is drawn, so that boxes and caption stay readable."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _GREY, _BLACK = (255, 255, 255), (150, 150, 150), (0, 0, 0)
_RED, _GREEN = (72, 72, 230), (110, 180, 70)


def draw(image: UInt8Array, inspection: Inspection, threshold: float | None, boxes: Sequence[Box] = ()) -> UInt8Array:
    """Draw an inspection over its frame.

    Heat is shown as ``engines.pictures.relative`` scales it.

    Args:
        image: uint8 (H, W, 3), BGR; not changed.
        inspection: of this image.
        threshold: None where there is no calibration; the caption then gives the score alone.
        boxes: defects, frame pixels.

    Returns:
        uint8 (h, w, 3), BGR: the frame, enlarged if it is small, with a caption below.
    """
    height, width = image.shape[:2]
    scale = max(1.0, MIN_SIDE / max(height, width))
    size = (round(width * scale), round(height * scale))
    heat = _heat(inspection, threshold)
    if scale > 1:
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        heat = np.asarray(cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR), np.float32)
    picture = blend(image, heat)
    line = max(2, round(max(size) / 320))
    roi = inspection.grid.roi
    if (roi.h, roi.w) != (height, width):
        _rectangle(picture, roi, scale, line, _GREY)
    for box in boxes:
        _rectangle(picture, box, scale, line, _WHITE)
    return np.vstack((picture, _caption(picture.shape[1], max(size), inspection.score, threshold)))


def _heat(inspection: Inspection, threshold: float | None) -> Float32Array:
    """float32 (H, W), 0..1, frame pixels."""
    grid = inspection.grid
    # Single pixels mean little; a blur of some pixels shows the shape of what differs.
    heat = np.asarray(cv2.GaussianBlur(inspection.heat.clip(0), (0, 0), grid.patch / 32), np.float32)
    return grid.to_frame(relative(heat, inspection.score, threshold))


def _rectangle(picture: UInt8Array, box: Box, scale: float, line: int, colour: tuple[int, int, int]) -> None:
    """A rectangle with a dark rim, visible on light and dark surfaces alike."""
    start = (round(box.x * scale), round(box.y * scale))
    # The last column and row of the box, not the first ones outside: they may lie outside the picture.
    end = (round(box.right * scale) - 1, round(box.bottom * scale) - 1)
    cv2.rectangle(picture, start, end, _BLACK, line + 2, cv2.LINE_AA)
    cv2.rectangle(picture, start, end, colour, line, cv2.LINE_AA)


def _caption(width: int, longer_side: int, score: float, threshold: float | None) -> UInt8Array:
    """Strip below the picture: verdict, score and threshold, in letters that suit the picture's size.

    One line; where the picture is too narrow for it, one below the other.
    """
    texts = [(f"score {score:.4g}", _WHITE)]
    if threshold is not None:
        verdict = ("DEFECT", _RED) if score > threshold else ("good", _GREEN)
        texts = [verdict, *texts, (f"threshold {threshold:.4g}", _WHITE)]
    line = max(24, round(longer_side / 18))
    gap = line // 3
    thickness = max(1, round(line / 18))
    sizes = [cv2.getTextSize(text, _FONT, 1.0, thickness)[0] for text, _ in texts]
    scale = 0.45 * line / max(height for _, height in sizes)
    in_a_row = sum(scale * w + 2 * gap for w, _ in sizes) <= width
    if not in_a_row:
        scale = min(scale, (width - 2 * gap) / max(w for w, _ in sizes))
    strip = np.full((line if in_a_row else line * len(texts), width, 3), 32, np.uint8)
    x = y = 0
    for (text, colour), (text_width, text_height) in zip(texts, sizes, strict=True):
        baseline = y + round((line + scale * text_height) / 2)
        cv2.putText(strip, text, (x + gap, baseline), _FONT, scale, colour, thickness, cv2.LINE_AA)
        if in_a_row:
            x += round(scale * text_width) + 2 * gap
        else:
            y += line
    return strip
