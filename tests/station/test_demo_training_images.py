from itertools import pairwise

import cv2
import numpy as np
import pytest

from engines.defects import KINDS
from station.demo import training_images
from station.demo.textures import DemoError
from station.demo.training_images import good_frames, write_training_images


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(training_images, "N_TRAIN", 5)
    monkeypatch.setattr(training_images, "N_TEST_GOOD", 4)
    monkeypatch.setattr(training_images, "N_TEST_PER_KIND", 2)


def test_it_writes_a_data_set_in_mvtec_layout(tmp_path, few):
    out = tmp_path / "new" / "brick"
    write_training_images(out)
    n_files = {str(p.relative_to(out)): len(list(p.iterdir())) for p in out.glob("*/*")}
    expected = {"train/good": 5, "test/good": 4}
    expected |= {f"{part}/{kind}": 2 for part in ("test", "ground_truth") for kind in KINDS}
    assert n_files == expected
    good = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((out / "train/good").iterdir())]
    assert all(picture.shape == (256, 256) for picture in good)
    assert not np.array_equal(good[0], good[1])
    for kind in KINDS:
        for path in (out / "test" / kind).iterdir():
            mask = cv2.imread(str(out / "ground_truth" / kind / f"{path.stem}_mask.png"), cv2.IMREAD_UNCHANGED)
            assert set(np.unique(mask)) == {0, 255}
            rows, columns = np.nonzero(mask)
            assert rows.min() > 0  # wholly in the picture
            assert rows.max() < 255
            # All of one defect: the mask's extent is no larger than one may be.
            assert max(np.ptp(rows), np.ptp(columns)) < 190


def test_a_folder_with_files_in_it_is_left_alone(tmp_path, few):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DemoError, match="not empty"):
        write_training_images(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_good_frames_to_calibrate_on_are_different_and_good():
    frames = list(good_frames(12))
    assert len(frames) == 12
    assert all(frame.shape == (256, 256) and frame.dtype == np.uint8 for frame in frames)
    for a, b in pairwise(frames):
        assert np.abs(a.astype(int) - b).mean() > 5
