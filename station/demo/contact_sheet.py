"""One picture of a demo run: every planted defect as the station reported it, then its false alarms."""

import cv2
import numpy as np

from engines.engine import UInt8Array
from station.demo.sample_line import Planted, SampleLine
from station.demo.tally import Tally

_COLUMNS = 5
_TILE = 240  # pixels, width and height of a picture
_CAPTION = 26
_GREEN, _RED, _WHITE = (60, 120, 40), (40, 40, 190), (255, 255, 255)


def draw_contact_sheet(tally: Tally, pictures: dict[str, UInt8Array]) -> UInt8Array | None:
    """Draw it; None if there is nothing to show.

    Args:
        tally: what was planted and found.
        pictures: alert id -> its picture, uint8 (H, W, 3), BGR.
    """
    line = tally.line
    tiles = []
    for i, planted in enumerate(line.planted):
        ids = tally.alerts_for(i)
        shown = next((pictures[id_] for id_ in ids if id_ in pictures), None)
        if shown is None:
            shown = _pointed_out(line, planted)
        tiles.append(_tile(shown, f"{planted.kind}: {'found' if ids else 'missed'}", _GREEN if ids else _RED))
    tiles += [_tile(pictures[id_], "false alarm", _RED) for id_ in tally.false_alarms if id_ in pictures]
    if not tiles:
        return None
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % _COLUMNS)
    return np.vstack([np.hstack(tiles[i : i + _COLUMNS]) for i in range(0, len(tiles), _COLUMNS)])


def _pointed_out(line: SampleLine, planted: Planted) -> UInt8Array:
    """A frame that shows the defect, with the defect framed."""
    frames = planted.frames(line.n_frames)
    index = frames[len(frames) // 2]
    frame = line.frame(index)
    box = planted.box(index)
    if box is not None:
        around = box.grown(4)
        cv2.rectangle(frame, (around.x, around.y), (around.right, around.bottom), _RED, 1)
    return frame


def _tile(picture: UInt8Array, caption: str, colour: tuple[int, int, int]) -> UInt8Array:
    scale = _TILE / max(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    tile = np.full((_TILE + _CAPTION + 4, _TILE + 4, 3), 255, np.uint8)
    tile[_CAPTION : _CAPTION + size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    tile[:_CAPTION, :_TILE] = colour
    cv2.putText(tile, caption, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, _WHITE, 1, cv2.LINE_AA)
    return tile
