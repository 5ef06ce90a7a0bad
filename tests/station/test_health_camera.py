"""The rules that tell a camera fault from a defect."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from engines.bundle import read_bundle
from station.calibration import Calibration, load_calibration
from station.camera.truncation import TruncationCheck
from station.demo.sample_line import SampleLine
from station.frames import Frame
from station.health.camera import CameraProfile, CameraWatch, Fault, ProfileMaker
from station.health.reading import measure
from station.settings import HealthSettings
from tests.support.bundles import make_bundle
from tests.support.calibrations import make_calibration
from tests.support.camera_faults import (
    defocused,
    dimmed,
    flickering,
    overexposed,
    railed,
    recoloured,
    shifted,
    stale_from,
    tinted,
)
from tests.support.webs import web

FPS = 25
Picture = Callable[[int], np.ndarray]


@cache
def brown(number: int) -> np.ndarray:
    """A reddish web between rails that stand still: every rule can work on it."""
    return railed(tinted(web(number), 0.8, 1.2), number)


def profile_of(pictures: Iterable[np.ndarray]) -> CameraProfile:
    maker = ProfileMaker()
    for picture in pictures:
        maker.add(picture)
    return maker.make()


@pytest.fixture(scope="module")
def profile() -> CameraProfile:
    return profile_of(brown(i) for i in range(40))


@pytest.fixture(scope="module")
def plain() -> CameraProfile:
    """Of the web alone: nothing stands still, and all is grey."""
    return profile_of(web(i) for i in range(40))


class Line:
    """Frames one after the other into a watch."""

    def __init__(self, profile: CameraProfile | None, **health: object) -> None:
        self.watch = CameraWatch(profile, HealthSettings.model_validate(health))
        self.number = 1000

    def show(self, image: np.ndarray, *, name: str = "", damage: str | None = None) -> str | None:
        """Code of what is found."""
        self.number += 1
        now = datetime(2024, 1, 1, tzinfo=timezone.utc)
        found = self.watch.check(Frame(self.number, image, now, self.number / FPS, name, damage))
        assert found is None or self.watch.fault == found
        return found.code if found else None

    @property
    def fault(self) -> str | None:
        return self.watch.fault.code if self.watch.fault else None


# --- what is measured ---


def test_levels_and_colour_of_a_drawing() -> None:
    image = np.full((240, 320, 3), (90, 100, 130), np.uint8)
    image[:60] = 255
    reading = measure(image)
    assert reading.size == (240, 320)
    assert reading.clipped == pytest.approx(0.25, abs=0.01)
    assert reading.dark == pytest.approx(107, abs=2)
    assert reading.bright == 255
    assert reading.colour == -40
    assert reading.noise == 0


@pytest.mark.parametrize("sigma", [1.0, 3.0, 6.0])
def test_noise_is_that_of_the_sensor(sigma: float) -> None:
    noise = np.random.default_rng(0).normal(0, sigma, (480, 640))
    flat = np.repeat(np.rint(120 + noise).astype(np.uint8)[..., None], 3, axis=2)
    assert measure(flat).noise == pytest.approx(sigma, rel=0.1)
    assert measure(flat).sharpness is None, "noise alone is no texture"


def test_sharpness_falls_with_defocus_whatever_the_light_and_the_noise() -> None:
    image = web(0, (480, 640), noise=0)
    sharp = measure(image).sharpness
    assert sharp is not None
    values = [measure(defocused(image, sigma, noise=2)).sharpness for sigma in (1, 1.5, 2, 3)]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var] # None would fail the test, as it should
    assert values[2] is not None
    assert values[2] < sharp / 3
    for same in (dimmed(image, 0.6), overexposed(image, 1.3), web(0, (480, 640), noise=4)):
        assert measure(same).sharpness == pytest.approx(sharp, rel=0.2)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 200), st.integers(1, 200)).flatmap(lambda hw: arrays(np.uint8, (*hw, 3))))
def test_any_picture_can_be_measured(image: np.ndarray) -> None:
    reading = measure(image)
    assert 0 <= reading.dark <= reading.bright <= 255
    assert 0 <= reading.brightness <= 255
    assert np.isfinite(reading.noise)
    Line(None).show(image)


# --- what is healthy ---


def test_good_frames_pass_and_every_rule_is_at_work(profile: CameraProfile) -> None:
    assert profile.blind == {}
    line = Line(profile)
    assert [line.show(brown(i)) for i in range(200, 260)] == [None] * 60
    assert line.watch.fault is None
    assert line.watch.reading is not None
    assert profile.brightness.low <= line.watch.reading.brightness <= profile.brightness.high


@pytest.mark.parametrize(
    ("pictures", "blind"),
    [
        ([web(i) for i in range(30)], {"camera-colours", "camera-moved"}),
        ([railed(web(i), i) for i in range(30)], {"camera-colours"}),
        ([web(i, grey=6, contrast=1) for i in range(30)], {"camera-black", "camera-dark", "camera-colours"}),
        ([web(i, grey=254, contrast=1) for i in range(30)], {"camera-bright", "camera-saturated", "camera-colours"}),
        ([np.full((96, 128, 3), 128, np.uint8)] * 30, {"camera-blurred", "camera-moved", "camera-colours"}),
        ([web(i, (192, 256 + i % 2)) for i in range(30)], {"camera-size", "camera-moved", "camera-colours"}),
        ([overexposed(web(i), 0.5 + i % 2) for i in range(30)], {"camera-flicker", "camera-colours"}),
    ],
    ids=["no landmarks", "grey", "black", "white", "flat", "sizes", "changing"],
)
def test_a_rule_that_cannot_work_is_off_and_says_why(pictures: list[np.ndarray], blind: set[str]) -> None:
    profile = profile_of(pictures)
    assert blind <= profile.blind.keys()
    assert all(profile.blind.values())
    line = Line(profile)
    assert [line.show(picture) for picture in pictures] == [None] * len(pictures)


def test_the_profile_goes_through_json_and_a_broken_one_is_refused(profile: CameraProfile) -> None:
    text = profile.model_dump_json()
    assert CameraProfile.model_validate_json(text) == profile
    assert len(text) < 40_000
    fields = json.loads(text)
    for key, value in (
        ("reference_height", 3),
        ("reference_width", 10**6),
        ("flicker", "NaN"),
        ("noise", {"low": 2, "high": 1}),
        ("blind", {"x": "y"}),
    ):
        with pytest.raises(ValidationError):
            CameraProfile.model_validate_json(json.dumps(fields | {key: value}))


def test_a_calibration_holds_the_profile_and_an_old_one_is_still_read(tmp_path, profile: CameraProfile) -> None:
    make_bundle(tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    path = tmp_path / "calibration.json"
    path.write_text(make_calibration(bundle, healthy=profile).model_dump_json(by_alias=True))
    assert load_calibration(path, bundle).healthy == profile
    old = json.loads(make_calibration(bundle).model_dump_json(by_alias=True))
    del old["healthy"]
    assert Calibration.model_validate_json(json.dumps(old)).healthy is None


# --- faults ---

SPOILT: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "cap on the lens": ("camera-black", lambda image: dimmed(image, 0)),
    "lamp out": ("camera-black", lambda image: dimmed(image, 0.05)),
    "half of the light": ("camera-dark", lambda image: dimmed(image, 0.5)),
    "light from outside": ("camera-bright", lambda image: overexposed(image, 1.6)),
    "exposure stuck": ("camera-saturated", lambda image: overexposed(image, 20)),
    "out of focus": ("camera-blurred", lambda image: defocused(image, 2.5, noise=2)),
    "far out of focus": ("camera-blurred", lambda image: defocused(image, 4, noise=2)),
    "knocked to the right": ("camera-moved", lambda image: shifted(image, -10, 0)),
    "knocked down": ("camera-moved", lambda image: shifted(image, 2, -12)),
    "red and blue exchanged": ("camera-colours", recoloured),
    "another resolution": ("camera-size", lambda image: cv2.resize(image, (128, 96))),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_fault_is_known_by_its_first_frame_and_over_when_it_is_over(profile: CameraProfile, what: str) -> None:
    code, spoil = SPOILT[what]
    line = Line(profile, recover_after=1)
    assert [line.show(brown(i)) for i in range(5)] == [None] * 5
    assert [line.show(spoil(brown(i))) for i in range(5, 20)] == [code] * 15
    found = line.watch.fault
    assert str(found).startswith(f"{code}: ")
    assert [line.show(brown(i)) for i in range(20, 20 + FPS)] == [None] * FPS, "good frames are inspected at once"
    assert line.fault == code, "a fault that comes and goes must not hide between two looks"
    for i in range(FPS, FPS + 3):
        line.show(brown(i))
    assert line.fault is None


def test_how_far_the_camera_has_moved(profile: CameraProfile) -> None:
    line = Line(profile)
    line.show(shifted(brown(1), 12, -8))
    assert line.watch.fault == Fault("camera-moved", "the view has shifted by +12 pixels to the right and -8 down")


@pytest.mark.parametrize("calibrated", [True, False])
def test_black_and_white_and_a_changed_size_need_no_profile(profile: CameraProfile, calibrated: bool) -> None:
    line = Line(profile if calibrated else None)
    assert line.show(brown(0)) is None
    assert line.show(dimmed(brown(1), 0)) == "camera-black"
    assert line.show(overexposed(brown(2), 20)) == "camera-saturated"
    assert line.show(cv2.resize(brown(3), (640, 480))) == "camera-size"
    assert line.fault == "camera-size"
    assert "640 x 480 pixels instead of 256 x 192" in str(line.watch.fault)


def test_files_without_a_calibration_may_have_any_size() -> None:
    line = Line(None)
    assert line.show(web(0), name="0.png") is None
    assert line.show(web(1, (100, 90)), name="1.png") is None


def test_a_picture_cut_short_is_a_fault_at_once(profile: CameraProfile) -> None:
    line = Line(profile, recover_after=0.2)
    assert line.show(brown(0), damage="the last 40% of the picture did not arrive") == "camera-truncated"
    assert "40%" in str(line.watch.fault)
    assert [line.show(brown(i)) for i in range(1, 8)] == [None] * 7
    assert line.fault is None


def test_frozen_is_the_very_same_picture_for_some_time(profile: CameraProfile) -> None:
    line = Line(profile, frozen_after=1, recover_after=0.2)
    picture = brown(0)
    found = [line.show(picture.copy()) for _ in range(2 * FPS)]
    assert found == [None] * (FPS) + ["camera-frozen"] * FPS
    assert str(line.watch.fault) == "camera-frozen: the same picture for 2 s"
    different = picture.copy()
    different[-1, -1] ^= 1
    assert line.show(different) is None
    assert [line.show(brown(i)) for i in range(8)] == [None] * 8
    assert line.fault is None


@pytest.mark.parametrize(("health", "name"), [({"frozen_after": None}, ""), ({"frozen_after": 1}, "0.png")])
def test_a_repeated_file_or_a_switched_off_rule_is_not_frozen(health: dict[str, object], name: str) -> None:
    line = Line(None, **health)
    assert [line.show(web(0), name=name) for _ in range(3 * FPS)] == [None] * 3 * FPS


@pytest.mark.parametrize("amplitude", [0.06, 0.15, 0.5])
def test_flicker_is_known_when_the_brightness_keeps_changing(profile: CameraProfile, amplitude: float) -> None:
    line = Line(profile)
    assert [line.show(brown(i)) for i in range(20)] == [None] * 20
    found = [line.show(flickering(brown(i), amplitude, i)) for i in range(40)]
    assert set(found[20:]) == {"camera-flicker"}
    assert line.fault == "camera-flicker"
    assert [line.show(brown(i)) for i in range(3 * FPS + 20)][-1] is None
    assert line.fault is None


def test_one_step_of_light_is_no_flicker(profile: CameraProfile) -> None:
    line = Line(profile)
    assert [line.show(overexposed(brown(i), 1.0 if i < 20 else 1.08)) for i in range(40)] == [None] * 40


def test_missing_material_that_comes_in_slowly_is_no_flicker(profile: CameraProfile) -> None:
    line = Line(profile)
    shares = [min(i, 40 - i) / 22 for i in range(41)]
    pictures = [railed(tinted(hole(web(i), share, 8), 0.8, 1.2), i) for i, share in enumerate(shares)]
    assert [line.show(picture) for picture in pictures] == [None] * 41


def test_a_fault_near_the_limit_does_not_flap(profile: CameraProfile) -> None:
    line = Line(profile, recover_after=0.2)
    factors = np.linspace(1.0, 0.4, 200)
    limit = next(f for f in factors if line.show(dimmed(brown(0), f)) == "camera-dark")
    assert 0.55 < limit < 0.9
    line = Line(profile, recover_after=0.2)
    line.show(dimmed(brown(0), limit))
    found = [line.show(dimmed(brown(i), limit * (1.02 if i % 2 else 0.99))) for i in range(60)]
    assert set(found) == {"camera-dark"}


def test_a_rule_can_be_switched_off(profile: CameraProfile) -> None:
    line = Line(profile, ignore=["camera-black", "camera-dark", "camera-blurred"])
    assert line.show(dimmed(brown(0), 0)) is None
    with pytest.raises(ValidationError):
        HealthSettings.model_validate({"ignore": ["camera-blind"]})


# --- no fault ---


def hole(image: np.ndarray, share: float, level: int) -> np.ndarray:
    """The web is missing on ``share`` of the frame; behind it, all is of one grey level and the sensor's noise."""
    torn = image.copy()
    rows = round(share * image.shape[0])
    noise = np.random.default_rng(3).normal(0, 2, (rows, *image.shape[1:2], 1))
    torn[:rows] = np.clip(level + noise, 0, 255).astype(np.uint8)
    return torn


DEFECTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a hole, dark behind it": lambda image: hole(image, 0.85, 8),
    "a hole, a lamp behind it": lambda image: hole(image, 0.45, 255),
    "a hole, grey behind it": lambda image: hole(image, 0.8, 120),
    "no web at all, a grey table": lambda image: hole(image, 1.0, 120),
    "a large stain": lambda image: np.concatenate([dimmed(image[:120], 0.4), image[120:]]),
    "a smear over two thirds": lambda image: np.concatenate([defocused(image[:120], 6, 2), image[120:]]),
    "a red splash": lambda image: np.concatenate([image[:110] // 2 + np.array([0, 0, 120], np.uint8), image[110:]]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_huge_defect_is_no_camera_fault(profile: CameraProfile, defect: str) -> None:
    line = Line(profile)
    spoil = DEFECTS[defect]
    pictures = [railed(tinted(spoil(web(i)) if 10 <= i < 20 else web(i), 0.8, 1.2), i) for i in range(30)]
    assert [line.show(picture) for picture in pictures] == [None] * 30


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_huge_defect_without_anything_around_it_is_no_camera_fault(plain: CameraProfile, defect: str) -> None:
    line = Line(plain)
    spoil = DEFECTS[defect]
    assert [line.show(spoil(web(i)) if 10 <= i < 20 else web(i)) for i in range(30)] == [None] * 30


def test_defects_of_the_sample_line_are_no_camera_faults() -> None:
    good, planted = SampleLine(1, 240, defects=False), SampleLine(2, 120)
    line = Line(profile_of(good.frame(i) for i in range(0, 240, 4)))
    assert [line.show(planted.frame(i)) for i in range(120)] == [None] * 120
    assert line.watch.fault is None


# --- what a decoder makes of a JPEG that was cut short: see test_camera_streams.py for a real one ---


def test_stale_rows_are_found_by_the_capture_and_reported_here(profile: CameraProfile) -> None:
    check, line = TruncationCheck(), Line(profile)
    before = brown(0)
    codes = []
    for i in range(30):
        image = stale_from(brown(i), before, 0.4) if i in {20, 25} else brown(i)
        codes.append(line.show(image, damage=check.check(image)))
        before = image
    assert [i for i, code in enumerate(codes) if code] == [20, 25]
