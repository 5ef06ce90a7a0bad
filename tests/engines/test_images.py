import os
import struct
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import ImageError
from engines.images import find_images, read_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
FLAT = np.full((24, 40, 3), (40, 90, 200), np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(name, image, *parameters):
        path = tmp_path / name
        assert cv2.imwrite(str(path), image, list(parameters))
        return path

    return save


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF", "PNG"])
def test_lossless_files_come_back_as_bgr(save, suffix):
    image = read_image(save(f"a.{suffix}", COLOUR))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, COLOUR)


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpeg(save, progressive):
    image = read_image(save("a.jpg", FLAT, cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive))
    assert np.abs(image.astype(int) - FLAT).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_gray_is_repeated(save, suffix):
    image = read_image(save(f"a.{suffix}", COLOUR[:, :, 0]))
    np.testing.assert_array_equal(image, np.repeat(COLOUR[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_use_their_full_range(save, suffix, channels):
    values = np.array([0, 257 * 7, 257 * 128, 65535], np.uint16)
    image = read_image(save(f"a.{suffix}", np.tile(values[:, None, None], (1, 5, channels))))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[:, 0], np.repeat([[0], [7], [128], [255]], 3, axis=1))


def test_alpha_is_dropped(save):
    with_alpha = np.dstack([COLOUR, np.full(COLOUR.shape[:2], 9, np.uint8)])
    np.testing.assert_array_equal(read_image(save("a.png", with_alpha)), COLOUR)


def test_exif_orientation_is_applied(save):
    half = np.zeros((24, 40, 3), np.uint8)
    half[:, :20] = 255  # bright on the left
    path = save("a.jpg", half)
    # Orientation 6: to be turned by 90 degrees clockwise, which puts left on top.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    image = read_image(path)
    assert image.shape == (40, 24, 3)
    assert image[:15].min() > 240
    assert image[25:].max() < 15


def test_the_errors_name_the_file(tmp_path):
    path = tmp_path / "nothing.png"
    with pytest.raises(ImageError, match=r"nothing\.png: cannot be read: No such file"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"nothing\.png: empty, or not a PNG"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_a_file_that_was_cut_off_is_refused(save, suffix):
    path = save(f"a.{suffix}", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"a\.{suffix}: "):
        read_image(path)


def test_a_thumbnail_does_not_hide_that_a_jpeg_is_cut_off(save):
    path = save("a.jpg", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = path.read_bytes()
    thumbnail = b"Exif\0\0" + data[:200] + b"\xff\xd9"
    path.write_bytes(
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2 : len(data) // 2]
    )
    with pytest.raises(ImageError, match="cut off"):
        read_image(path)


def test_other_formats_are_refused_whatever_their_name(save, tmp_path):
    path = save("a.webp", COLOUR).rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match="not a PNG, JPEG, BMP or TIFF"):
        read_image(path)


def test_float_pixels_are_refused(save):
    with pytest.raises(ImageError, match="float32 pixels"):
        read_image(save("a.tif", np.ones((8, 8, 3), np.float32)))


def test_an_absurd_size_is_refused_before_decoding(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match=r"bomb\.png: 30000 x 30000 pixels; at most"):
        read_image(path)


def tiff(*entries):
    """A TIFF of 4 x 4 grey pixels with these (tag, type, count, value) entries for its size."""
    rest = [
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 200),
        (277, 3, 1, 1),
        (278, 4, 1, 4),
        (279, 4, 1, 16),
    ]
    packed = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + struct.pack("<I" if kind == 4 else "<HH", *([value] if kind == 4 else [value, 0]))
        for tag, kind, count, value in (*entries, *rest)
    )
    return (b"II*\0" + struct.pack("<IH", 8, len(entries) + len(rest)) + packed + b"\0" * 4).ljust(
        200, b"\0"
    ) + b"\x80" * 16


SIZE = ((256, 4, 1, 4), (257, 3, 1, 4))


def test_the_tiff_that_is_altered_below_is_a_good_one(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(*SIZE))
    assert read_image(path).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (((256, 4, 1, 60000), (256, 4, 1, 4), (257, 3, 1, 60000)), "does not give its size once"),
        (((256, 16, 1, 4), (257, 3, 1, 4)), "does not give its size once"),  # 64 bits, which lie somewhere else
        (((256, 4, 2, 4), (257, 3, 1, 4)), "does not give its size once"),
        (((256, 4, 1, 60000), (257, 3, 1, 60000)), "60000 x 60000 pixels"),
    ],
)
def test_a_tiff_cannot_hide_its_size(tmp_path, entries, message):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(*entries))
    with pytest.raises(ImageError, match=message):
        read_image(path)


def test_absurd_sizes_of_the_other_formats_are_refused_before_decoding(save):
    bmp = save("a.bmp", FLAT)
    bmp.write_bytes(bmp.read_bytes()[:18] + struct.pack("<ii", 60000, -60000) + bmp.read_bytes()[26:])
    jpeg = save("a.jpg", FLAT)
    data = jpeg.read_bytes()
    frame = data.index(b"\xff\xc0")
    jpeg.write_bytes(data[: frame + 5] + struct.pack(">HH", 60000, 60000) + data[frame + 9 :])
    for path in (bmp, jpeg):
        with pytest.raises(ImageError, match="60000 x 60000 pixels; at most"):
            read_image(path)


def test_a_jpeg_gives_its_size_once(save):
    path = save("a.jpg", FLAT)
    data = path.read_bytes()
    frame = data.index(b"\xff\xc0")
    length = 2 + struct.unpack_from(">H", data, frame + 2)[0]
    path.write_bytes(data[:frame] + data[frame : frame + length] + data[frame:])
    with pytest.raises(ImageError, match="gives its size twice"):
        read_image(path)


def test_a_pipe_is_no_image_and_a_link_to_one_is(save, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to-pipe.png").symlink_to("pipe.png")
    for name in ("pipe.png", "to-pipe.png"):
        with pytest.raises(ImageError, match="not a regular file"):
            read_image(tmp_path / name)
    (tmp_path / "link.png").symlink_to(save("a.png", COLOUR))
    np.testing.assert_array_equal(read_image(tmp_path / "link.png"), COLOUR)
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(ImageError, match=r"circle\.png: cannot be read"):
        read_image(tmp_path / "circle.png")


@given(st.data())
def test_damage_ends_in_an_image_or_an_image_error(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from(["png", "jpg", "bmp", "tif"]))
    encoded = bytearray(cv2.imencode(f".{suffix}", FLAT)[1].tobytes())
    for _ in range(data.draw(st.integers(0, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / f"a.{suffix}"
    path.write_bytes(encoded[: data.draw(st.integers(0, len(encoded)))])
    with suppress(ImageError):  # any other error fails the test
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


def test_find_images_is_recursive_and_sorted_bytewise(tmp_path):
    for name in ["b.PNG", "a/2.jpg", "a/10.jpeg", "Z.bmp", "ä.tif", "a/notes.txt", ".hidden/x.png", "a/._10.jpg"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["Z.bmp", "a/10.jpeg", "a/2.jpg", "b.PNG", "ä.tif"]


def test_find_images_of_no_folder(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        find_images(tmp_path / "missing")
