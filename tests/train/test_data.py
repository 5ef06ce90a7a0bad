"""Training images: found, read, prepared; unusable ones are named."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from train.config import FitConfig
from train.data import TrainingImages, find_training_images, load_training_images
from train.errors import DataError


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def random_image(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def load(paths: list[Path], config: FitConfig | None = None, *, skip_bad: bool = False) -> TrainingImages:
    *counts, images = load_training_images(paths, config or FitConfig(), skip_bad=skip_bad)
    assert counts == list(range(1, len(paths) + 1))
    assert isinstance(images, TrainingImages)
    return images


def test_mvtec_layout_takes_train_good_only(tmp_path):
    good = write(tmp_path / "train/good/a.png", random_image(64, 64))
    write(tmp_path / "test/good/b.png", random_image(64, 64))
    assert find_training_images(tmp_path) == [good]


def test_plain_folder_and_what_is_none(tmp_path):
    a = write(tmp_path / "plain/a.jpg", random_image(64, 64, 3))
    assert find_training_images(tmp_path / "plain") == [a]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        find_training_images(tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder"):
        find_training_images(tmp_path / "missing")
    write(tmp_path / "half/test/good/a.png", random_image(64, 64))
    with pytest.raises(DataError, match="no train/good"):
        find_training_images(tmp_path / "half")


def test_formats_depths_and_sizes(tmp_path):
    paths = [
        write(tmp_path / "grey8.png", random_image(64, 90)),
        write(tmp_path / "grey16.png", random_image(100, 70, dtype=np.uint16)),
        write(tmp_path / "grey.bmp", random_image(65, 64)),
        write(tmp_path / "grey16.tiff", random_image(64, 64, dtype=np.uint16)),
    ]
    images = load(paths)
    assert images.colour == "gray"
    assert [i.shape for i in images.images] == [(64, 90, 1), (100, 70, 1), (65, 64, 1), (64, 64, 1)]
    sixteen = cv2.imread(str(paths[1]), cv2.IMREAD_UNCHANGED)
    assert np.abs(images.images[1][..., 0] - sixteen / 257).max() <= 1

    colour = load([*paths, write(tmp_path / "colour.jpg", random_image(64, 64, 3))])
    assert colour.colour == "rgb"
    assert all(i.shape[2] == 3 for i in colour.images)
    told = load([write(tmp_path / "colour.png", random_image(64, 64, 3))], FitConfig(colour="gray"))
    assert told.colour == "gray"


def test_colours_are_rgb_for_the_model(tmp_path):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 2] = 200  # BGR on disk's way in
    assert load([write(tmp_path / "red.png", red)]).images[0][0, 0].tolist() == [200, 0, 0]


def test_frame_size_and_scale(tmp_path):
    path = write(tmp_path / "a.png", random_image(300, 200))
    assert load([path], FitConfig(frame_size=(128, 96))).images[0].shape == (128, 96, 1)
    assert load([path], FitConfig(scale=0.5)).images[0].shape == (150, 100, 1)


def test_unusable_files_are_all_named_and_may_be_skipped(tmp_path):
    good = write(tmp_path / "good.png", random_image(64, 64))
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:100])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    small = write(tmp_path / "small.png", random_image(40, 90))
    paths = [broken, good, small, text]
    with pytest.raises(DataError) as caught:
        list(load_training_images(paths, FitConfig()))
    for path in (broken, text, small):
        assert str(path) in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    images = load(paths, skip_bad=True)
    assert images.paths == [good]
    assert len(images.skipped) == 3
    with pytest.raises(DataError, match="none of the images"):
        list(load_training_images([broken, text], FitConfig(), skip_bad=True))


def test_fingerprint_tells_content_not_order(tmp_path):
    a = write(tmp_path / "a.png", random_image(64, 64))
    b = write(tmp_path / "b.png", random_image(64, 65))
    assert load([a, b]).fingerprint == load([b, a]).fingerprint
    before = load([a, b]).fingerprint
    write(a, random_image(64, 66))
    assert load([a, b]).fingerprint != before


def test_what_does_not_fit_into_memory_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png", random_image(64, 64))
    monkeypatch.setattr("os.sysconf", lambda name: 64)
    with pytest.raises(DataError, match="--frame-size or --scale"):
        list(load_training_images([path], FitConfig()))


def test_some_images_are_held_out_by_the_seed(tmp_path):
    paths = [write(tmp_path / f"{i:02}.png", np.full((64, 64), i, np.uint8)) for i in range(60)]
    images = load(paths, FitConfig(seed=1))
    assert (len(images.images), len(images.paths), len(images.held_out)) == (51, 51, 9)
    assert sorted([*images.paths, *images.held_out]) == paths
    assert [int(image[0, 0, 0]) for image in images.images] == [int(path.stem) for path in images.paths]
    assert load(paths, FitConfig(seed=1)).held_out == images.held_out
    assert load(paths, FitConfig(seed=2)).held_out != images.held_out
    assert load(paths, FitConfig(seed=2)).fingerprint == images.fingerprint
    assert not load(paths, FitConfig(holdout=0)).held_out
    assert len(load(paths[:37], FitConfig()).held_out) == 6
    assert not load(paths[:36], FitConfig()).held_out, "the few there are are better trained on"
