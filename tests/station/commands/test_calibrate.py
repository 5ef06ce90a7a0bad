import itertools
import json
from html import unescape

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from engines.defects import KINDS
from station.calibration import CalibrationError, load_calibration
from station.camera import CameraError
from station.cli import app
from station.inspection import Inspector
from station.settings import load_settings
from tests.support.bundles import GREY, make_bundle

SIZE = (64, 96)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy", 32)


def write_frames(folder, n, defect=False, seed=0):
    """Noisy grey frames; a defect is a bright spot."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        image = (GREY + rng.normal(0, rng.uniform(3, 6), (*SIZE, 3))).clip(0, 255).astype(np.uint8)
        if defect:
            image[20:40, 30:60] = rng.integers(190, 255)
        cv2.imwrite(str(folder / f"{i:03d}.png"), image)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames") / "good", 60)


@pytest.fixture(scope="module")
def defect(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames") / "test" / "spot", 12, defect=True, seed=1).parent


def station(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def write_config(folder, bundle, url, extra=""):
    path = folder / "station.toml"
    path.write_text(
        f'bundle = "{bundle.path}"\ncalibration = "limits/calibration.json"\n[camera]\nurl = "{url}"\n{extra}'
    )
    return path


def test_from_good_frames(bundle, good, tmp_path):
    out = tmp_path / "new" / "calibration.json"
    result = station("--bundle", bundle.path, "--good", good, "--false-alarms", "1e-2", "--out", out)
    assert result.exit_code == 0, result.output
    calibration = load_calibration(out, bundle)
    assert calibration.method == "false_alarm_rate"
    assert calibration.threshold == calibration.false_alarms.threshold
    assert calibration.false_alarms.rate == 1e-2
    assert calibration.n_good == 60
    assert calibration.camera.source == str(good)
    assert (calibration.camera.frame_height, calibration.camera.frame_width) == SIZE
    assert calibration.good.median < calibration.threshold
    # For 60 frames, the expected number above a threshold for 1 in 100 is below one.
    assert calibration.threshold > calibration.good.quantiles["0.95"]
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "calibration.html",
        "calibration.json",
        "calibration.svg",
    ]
    page = out.with_suffix(".html").read_text()
    assert page.count("<img alt='frame ") == 6
    assert page.count("<img alt='patch ") == 24
    assert f'calibration = "{out}"' in unescape(page), "no settings name it yet"
    assert "Score by place in the frame" in page
    assert "60 good frames are few for a budget of 1 in 100" in page
    assert "60 good frames are few" in result.stdout
    assert f"A frame that scores above {calibration.threshold:.5g} is called defective." in result.stdout


def test_from_good_and_defective_frames(bundle, good, defect, tmp_path):
    out = tmp_path / "calibration.json"
    result = station("--bundle", bundle.path, "--good", good, "--defect", defect, "--out", out)
    assert result.exit_code == 0, result.output
    calibration = load_calibration(out, bundle)
    assert calibration.method == "balanced_accuracy"
    assert calibration.separation.auroc == 1
    assert calibration.separation.balanced_accuracy == 1
    assert calibration.threshold == calibration.separation.threshold
    assert calibration.n_defect == 12
    assert calibration.good.highest < calibration.threshold < calibration.defect.quantiles["0"]
    assert out.with_suffix(".html").read_text().count("<img alt='frame ") == 12


def test_false_alarm_budget_decides_when_given_beside_defects(bundle, good, defect, tmp_path):
    out = tmp_path / "calibration.json"
    station("--bundle", bundle.path, "--good", good, "--defect", defect, "--false-alarms", 0.05, "--out", out)
    calibration = load_calibration(out, bundle)
    assert calibration.method == "false_alarm_rate"
    assert calibration.threshold == calibration.false_alarms.threshold
    assert calibration.separation.auroc == 1


def test_from_good_frames_and_defects_planted_into_them(bundle, good, tmp_path):
    out = tmp_path / "calibration.json"
    result = station("--bundle", bundle.path, "--good", good, "--plant", "--out", out)
    assert result.exit_code == 0, result.output
    calibration = load_calibration(out, bundle)
    assert calibration.method == "planted_defects"
    assert calibration.threshold == calibration.separation.threshold
    assert list(calibration.planted) == list(KINDS)
    assert {kind.n for kind in calibration.planted.values()} == {60}, "fewer than 80 good frames: each is planted into"
    assert calibration.n_defect == 300
    found = sum(kind.found for kind in calibration.planted.values())
    assert found / 300 == pytest.approx(calibration.separation.defects_found)
    assert calibration.good.median < calibration.threshold
    page = out.with_suffix(".html").read_text()
    assert "The planted defects that score lowest" in page
    assert " in 0" in unescape(page), "captions name kind and frame"
    assert f"scratch {calibration.planted['scratch'].found} of 60" in result.stdout

    again = tmp_path / "again.json"
    station("--bundle", bundle.path, "--good", good, "--plant", "--out", again)
    assert load_calibration(again, bundle).threshold == calibration.threshold


def test_budget_decides_beside_planted_defects_too(bundle, good, tmp_path):
    out = tmp_path / "calibration.json"
    station("--bundle", bundle.path, "--good", good, "--plant", "--false-alarms", 0.05, "--out", out)
    calibration = load_calibration(out, bundle)
    assert calibration.method == "false_alarm_rate"
    assert calibration.threshold == calibration.false_alarms.threshold
    above = sum(kind.found for kind in calibration.planted.values()) / calibration.n_defect
    assert above <= calibration.separation.defects_found or calibration.threshold < calibration.separation.threshold


def test_defects_are_planted_into_the_region_of_interest_of_some_camera_frames(bundle, good, tmp_path, monkeypatch):
    seen = []
    inspect = Inspector.inspect
    monkeypatch.setattr(Inspector, "inspect", lambda self, image: (seen.append(image.copy()), inspect(self, image))[1])
    roi = "roi = {x = 32, y = 0, width = 64, height = 64}\nloop = true\n"
    config = write_config(tmp_path, bundle, f"folder:{write_frames(tmp_path / 'many', 90)}", roi)
    result = station("--config", config, "--frames", 90, "--plant")
    assert result.exit_code == 0, result.output
    calibration = load_calibration(tmp_path / "limits" / "calibration.json", bundle)
    assert calibration.n_defect == len(seen) - 90 == 45 * len(KINDS), "every other frame"
    changed = np.any([seen[1 + k] != seen[0] for k in range(len(KINDS))], axis=(0, 3))
    assert changed[:, 32:].any()
    assert not changed[:, :32].any()


def test_false_alarms_per_shift_with_the_frame_rate(bundle, good, tmp_path):
    out = tmp_path / "calibration.json"
    result = station(
        "--bundle", bundle.path, "--good", good, "--false-alarms", "30/shift", "--fps", "0.5", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert load_calibration(out, bundle).false_alarms.rate == pytest.approx(30 / (0.5 * 8 * 3600))
    assert "At 0.5 frames a second (--fps) about 30 good frames score above it in a shift of 8 hours" in result.stdout
    assert "1/week" in out.with_suffix(".html").read_text()


def test_false_alarms_per_shift_take_the_frame_rate_and_the_alerts_of_the_settings(bundle, good, tmp_path):
    config = write_config(tmp_path, bundle, f"folder:{good}", "fps = 2000\n[alerts]\nopen_hits = 2\nopen_window = 2\n")
    result = station("--config", config, "--frames", 40, "--false-alarms", "1000/hour")
    assert result.exit_code == 0, result.output
    calibration = load_calibration(tmp_path / "limits" / "calibration.json", bundle)
    assert calibration.false_alarms.rate == pytest.approx(1000 / (2000 * 3600))
    assert "(camera.fps) about 8,000 good frames score above it" in result.stdout
    assert "at most 4,000 a shift" in result.stdout


def test_false_alarms_per_shift_without_a_frame_rate_fail_before_any_work(bundle, good, tmp_path, monkeypatch):
    monkeypatch.setattr(Inspector, "inspect", lambda *_: pytest.fail("nothing is to be inspected"))
    result = station("--bundle", bundle.path, "--good", good, "--false-alarms", "1/shift")
    assert result.exit_code == 2
    assert "add --fps" in " ".join(result.stderr.replace("│", " ").split())


def test_a_defect_among_the_good_frames_leads_the_montage(bundle, tmp_path):
    folder = write_frames(tmp_path / "good", 40)
    write_frames(tmp_path / "odd", 1, defect=True)
    (tmp_path / "odd" / "000.png").rename(folder / "hidden.png")
    out = tmp_path / "calibration.json"
    assert station("--bundle", bundle.path, "--good", folder, "--out", out).exit_code == 0
    first = out.with_suffix(".html").read_text().split("<img alt='patch 1, ")[1]
    assert first.startswith("good/hidden.png, at x 32, y 0")


def test_light_from_one_side_is_told(bundle, tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(3)
    shade = np.linspace(0, 20, SIZE[1])[None, :, None]
    for i in range(40):
        image = (GREY + shade + rng.normal(0, rng.uniform(3, 6), (*SIZE, 3))).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:03d}.png"), image)
    out = tmp_path / "calibration.json"
    assert station("--bundle", bundle.path, "--good", folder, "--out", out).exit_code == 0
    page = out.with_suffix(".html").read_text()
    assert "The right side of the frame scores higher than the left one" in page
    assert "See where in the frame scores are high" in page


def test_good_frames_below_the_defect_folder_are_left_out(bundle, good, tmp_path):
    write_frames(tmp_path / "test" / "spot", 5, defect=True)
    write_frames(tmp_path / "test" / "good", 7)
    out = tmp_path / "calibration.json"
    station("--bundle", bundle.path, "--good", good, "--defect", tmp_path / "test", "--out", out)
    assert load_calibration(out, bundle).n_defect == 5


def test_from_the_camera_of_the_settings(bundle, good, tmp_path):
    roi = "roi = {x = 0, y = 0, width = 64, height = 64}\nloop = true\n"
    config = write_config(tmp_path, bundle, f"folder:{good}", roi + '[judge]\nframe_score = "mean_top_k"\n')
    result = station("--config", config, "--frames", 40)
    assert result.exit_code == 0, result.output
    settings = load_settings(config)
    assert settings.calibration == tmp_path / "limits" / "calibration.json"
    calibration = load_calibration(settings.calibration, bundle, settings.judge)
    assert calibration.n_good == 40
    assert calibration.camera.roi == settings.camera.roi
    assert calibration.camera.source == f"folder:{good}"
    assert calibration.frame_score == "mean_top_k"
    page = settings.calibration.with_suffix(".html").read_text()
    assert "Name the file in the station" not in page, "the settings do already"


def test_camera_that_ends_early_is_told(bundle, good, tmp_path):
    config = write_config(tmp_path, bundle, f"folder:{good}")
    result = station("--config", config, "--frames", 1000)
    assert result.exit_code == 0
    assert "Only 60 of 1000 good frames could be used." in result.stdout


def test_good_folder_stands_in_for_the_camera(bundle, good, tmp_path):
    config = write_config(tmp_path, bundle, "v4l2:///dev/no-such-camera")
    result = station("--config", config, "--good", good)
    assert result.exit_code == 0, result.output
    calibration = load_calibration(tmp_path / "limits" / "calibration.json", bundle)
    assert calibration.n_good == 60


def test_unreadable_files_and_several_sizes_are_told(bundle, good, tmp_path):
    folder = write_frames(tmp_path / "mixed", 30)
    (folder / "damaged.png").write_bytes(b"nothing")
    cv2.imwrite(str(folder / "large.png"), np.full((128, 128, 3), GREY, np.uint8))
    out = tmp_path / "calibration.json"
    result = station("--bundle", bundle.path, "--good", folder, "--out", out)
    assert result.exit_code == 0
    assert "damaged.png" in result.stderr
    assert "Only 31 of 32 good frames could be used." in result.stdout
    assert "The frames have 2 sizes" in result.stdout
    assert load_calibration(out, bundle).camera.frame_width == SIZE[1]


def test_few_frames_write_nothing(bundle, tmp_path):
    folder = write_frames(tmp_path / "few", 5)
    out = tmp_path / "calibration.json"
    result = station("--bundle", bundle.path, "--good", folder, "--out", out)
    assert isinstance(result.exception, CalibrationError)
    assert "5 good frames: at least 20 are needed" in str(result.exception)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --config"),
        (("--bundle", "b", "--config", "c"), "either --config"),
        (("--bundle", "b"), "--bundle needs --good"),
        (("--bundle", "b", "--good", ".", "--false-alarms", "2"), "between 0 and 1"),
        (("--bundle", "b", "--good", ".", "--false-alarms", "1/fortnight"), "1/shift"),
        (("--bundle", "b", "--good", ".", "--fps", "0"), "--fps"),
        (("--bundle", "b", "--good", ".", "--fps", "nan"), "--fps"),
        (("--bundle", "b", "--good", ".", "--out", "calibration.html"), "must end in .json"),
        (("--bundle", "b", "--good", ".", "--plant", "--defect", "."), "takes the place of --defect"),
        (("--bundle", "b", "--good", ".", "--frames", "3"), "greater than or equal to 20"),
    ],
)
def test_wrong_options_are_explained(arguments, words):
    result = station(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_camera_that_cannot_be_opened_is_a_camera_error(bundle, tmp_path):
    config = write_config(tmp_path, bundle, f"folder:{tmp_path / 'nowhere'}")
    result = station("--config", config)
    assert isinstance(result.exception, CameraError)


def test_interrupt_goes_on_with_the_frames_taken_so_far(bundle, good, tmp_path, monkeypatch):
    inspect_once = Inspector.inspect
    calls = itertools.count()

    def interrupted(self, image):
        if next(calls) == 30:
            raise KeyboardInterrupt
        return inspect_once(self, image)

    monkeypatch.setattr(Inspector, "inspect", interrupted)
    result = station("--config", write_config(tmp_path, bundle, f"folder:{good}"), "--frames", 50)
    assert result.exit_code == 0
    assert "Stopped; going on with 30 frames." in result.stderr
    assert load_calibration(tmp_path / "limits" / "calibration.json", bundle).n_good == 30


def test_earlier_calibration_survives_a_failed_one(bundle, good, tmp_path):
    out = tmp_path / "calibration.json"
    station("--bundle", bundle.path, "--good", good, "--out", out)
    before = out.read_bytes()
    result = station("--bundle", bundle.path, "--good", write_frames(tmp_path / "few", 3), "--out", out)
    assert result.exit_code != 0
    assert out.read_bytes() == before
    assert json.loads(before)["bundle_sha256"] == bundle.digest
