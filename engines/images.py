"""Image files, read the same way for training and for inspection."""

import os
import struct
from pathlib import Path

import cv2
import numpy as np

from engines.engine import UInt8Array
from engines.errors import ImageError
from engines.files import open_regular

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MAX_FILE_BYTES = 512 * 2**20
MAX_PIXELS = 2**28  # 16384 x 16384: 1.6 GB at 16 bits and three colours while decoding

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_ORDER = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TYPES = 256, 257, {3: "H", 4: "I"}
_JPEG_START_OF_SCAN, _JPEG_NOT_A_FRAME = 0xDA, (0xC4, 0xC8, 0xCC)  # between SOF0 (C0) and SOF15 (CF)


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, recursively; sorted bytewise, so that all machines have one order.

    Hidden files and folders are left out: they are thumbnails and resource forks, not photographs.

    Raises:
        ImageError: ``folder`` is not a folder.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(root, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found, key=os.fsencode)


def read_image(path: Path) -> UInt8Array:
    """Read a PNG, JPEG, BMP or TIFF file, 8 or 16 bits, grey, colour or with alpha (which is dropped).

    16-bit images use the full range 0..65535; a 12-bit camera must scale its pixels up before it saves them.
    The EXIF orientation is applied.

    Returns:
        uint8 (H, W, 3), BGR.

    Raises:
        ImageError: the file cannot be read, is no such image, is cut off or absurdly large; names the file.
    """
    try:
        # Resolved first: links are fine, data sets are made of them, but a pipe is no image and would never end.
        with open(path.resolve(), "rb", opener=open_regular) as file:  # Path.open takes no opener
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    except RuntimeError as error:  # links in a circle, before Python 3.13
        raise ImageError(f"{path}: cannot be read: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB")
    try:
        # Looked up before decoding: a file of some kilobytes can ask the decoder for gigabytes.
        height, width = _declared_size(data)
    except (struct.error, IndexError, KeyError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its header is damaged"
        raise ImageError(f"{path}: {reason}") from None
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"{path}: {width} x {height} pixels; at most {MAX_PIXELS} are allowed")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ImageError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"{path}: cannot be decoded: damaged, or a variant that OpenCV does not know")
    if image.dtype == np.uint16:
        return np.asarray(cv2.convertScaleAbs(image, alpha=1 / 257), dtype=np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"{path}: {image.dtype} pixels; save it with 8 or 16 bits unsigned")
    return np.asarray(image, dtype=np.uint8)


def _declared_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header; refuses files that end early, which decoders fill up with grey."""
    if data.startswith(_PNG):
        width, height = struct.unpack_from(">II", data, 16)
        if b"IEND" not in data[-1024:]:
            raise ValueError("the file is cut off: the PNG end mark is missing")
        return height, width
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(data)
    if data.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", data, 18)
        return abs(height), width  # negative height: rows stored top down
    if data[:4] in _TIFF_ORDER:
        return _tiff_size(data, _TIFF_ORDER[data[:4]])
    raise ValueError("empty, or not a PNG, JPEG, BMP or TIFF image")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    size: tuple[int, int] | None = None
    at = 2
    while data[at + 1] != _JPEG_START_OF_SCAN:
        marker = data[at + 1]
        if data[at] != 0xFF:
            raise ValueError("its JPEG header is damaged")
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _JPEG_NOT_A_FRAME:
            if size is not None:
                raise ValueError("its JPEG header gives its size twice")
            size = struct.unpack_from(">HH", data, at + 5)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    if size is None:
        raise ValueError("its JPEG header is damaged")
    if data.find(b"\xff\xd9", at) < 0:  # searched after the header: an embedded thumbnail has an end mark too
        raise ValueError("the file is cut off: the JPEG end mark is missing")
    return size


def _tiff_size(data: bytes, order: str) -> tuple[int, int]:
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, directory)
    size: dict[int, int] = {}
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, at)
        if tag not in (_TIFF_WIDTH, _TIFF_HEIGHT):
            continue
        # Decoders know more types, and take one of two entries: both could hide another size than the one seen here.
        if tag in size or kind not in _TIFF_TYPES or count != 1:
            raise ValueError("its TIFF header does not give its size once and as a plain number")
        (size[tag],) = struct.unpack_from(order + _TIFF_TYPES[kind], data, at + 8)
    return size[_TIFF_HEIGHT], size[_TIFF_WIDTH]
