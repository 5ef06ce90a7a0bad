"""Whether what the camera sends can be judged at all: dark, blurred, frozen, moved …; see docs/camera-faults.md.

A frame with a camera fault is not inspected, since every fault looks like a defect to a model of good material. The
other way round a defect, however large, must not pass for a camera fault. So a rule looks at nearly the whole frame:
it fires only where all but 3 % of the pixels are too dark, or the sharpest quarter of the frame is blurred.

`station calibrate` measures good frames and keeps their range (``CameraProfile``). It also tries each rule out on
them: one that would not notice its fault on this material, or would fire without it, is switched off and says why.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, final

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, model_validator

from engines.engine import UInt8Array
from station.frames import Frame
from station.health.landmarks import RELEASE, Landmarks, moved, why_no_landmarks
from station.health.reading import CLIPPED, SMALL_SIDE, TAIL, Reading, detail, measure, tiles_of
from station.settings import CameraRule, HealthSettings

# --- when a rule fires ---

_BLACK = 16.0  # grey level: darker is nothing but noise
_CLIPPED_SHARE = 0.9  # without a profile
_LIGHT_MARGIN = 0.2  # of the healthy level
_LIGHT_RANGE_MARGIN = 0.5  # of the healthy range, if that is more
_BLUR_MARGIN = math.log(1.5)
_SHARP_EDGES = 0.1  # the sharpness of straight edges in focus is 0.12 to 0.16: that of a hole, for instance
_TEXTURE_LEFT = 0.5  # of the healthy share of textured tiles
_BLUR_RANGE_MARGIN = 0.25  # of the healthy range, if that is more
_COLOUR_VISIBLE = 4.0  # grey levels between blue and red; less is noise
_FLICKER_FRAMES = 12
_FLICKER = math.log(1.06)
_FLICKER_MARGIN = 3.0  # times the healthy swing, if that is more
_FROZEN_FRAMES = 3
_GOOD_FRAMES = 5  # in a row that end a fault
_MAX_REFERENCE = SMALL_SIDE**2


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the camera.

    Attributes:
        code: stable, such as ``camera-black``.
        words: the details.
    """

    code: str
    words: str

    def __str__(self) -> str:
        return f"{self.code}: {self.words}"


# --- what is healthy ---


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Model):
    """Lowest and highest value of good frames."""

    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low > self.high:
            raise ValueError("low is more than high")
        return self

    @property
    def span(self) -> float:
        """From the lowest to the highest."""
        return self.high - self.low

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}"


class CameraProfile(_Model):
    """What good frames look like to the camera rules; part of ``calibration.json``."""

    n: int = Field(ge=1, description="Frames that it was taken from.")
    frame_height: int | None = Field(default=None, ge=1, description="Null: the frames had several sizes.")
    frame_width: int | None = Field(default=None, ge=1)
    brightness: Range
    dark: Range
    bright: Range
    clipped: Range
    sharpness: Range | None = Field(description="Null: no texture to tell from.")
    textured: Range = Field(description="Share of the tiles that have texture.")
    noise: Range
    colour: Range
    flicker: float = Field(ge=0, le=10, description="Usual swing of the brightness from frame to frame, its logarithm.")
    reference: Annotated[Base64Bytes, Field(max_length=_MAX_REFERENCE)] | None = Field(
        default=None, description="Mean of the frames, grey, made small: where the landmarks are. Null: there are none."
    )
    reference_height: int = Field(default=0, ge=0, le=SMALL_SIDE)
    reference_width: int = Field(default=0, ge=0, le=SMALL_SIDE)
    likeness: float = Field(default=0, ge=-1, le=1, description="Lowest correlation of a good frame with it.")
    blind: dict[CameraRule, str] = Field(
        default_factory=dict, description="Rules that cannot work on this material, and why."
    )

    @model_validator(mode="after")
    def _whole_reference(self) -> "CameraProfile":
        if len(self.reference or b"") != self.reference_height * self.reference_width:
            raise ValueError("the reference has not as many pixels as reference_height x reference_width")
        if self.reference is not None and min(self.reference_height, self.reference_width) < 1:
            raise ValueError("the reference is empty")
        return self

    @property
    def landmarks(self) -> UInt8Array | None:
        """The reference, uint8 (h, w)."""
        if self.reference is None:
            return None
        return np.frombuffer(self.reference, np.uint8).reshape(self.reference_height, self.reference_width)


@final
class ProfileMaker:
    """Collects good frames, in the order of capture, and makes their profile."""

    def __init__(self) -> None:
        """Start with no frame."""
        self._readings: list[Reading] = []
        self._defocused: list[float | None] = []

    def add(self, image: UInt8Array) -> None:
        """Measure a good frame, uint8 (H, W, 3), BGR."""
        self._readings.append(measure(image))
        defocused = [cv2.GaussianBlur(tile, (0, 0), DEFOCUS) for tile in tiles_of(image)]
        self._defocused.append(detail(np.array(defocused, np.float32))[0] if defocused else None)

    def make(self) -> CameraProfile:
        """The profile of the frames so far, at least one."""
        readings = self._readings
        sharpness = [reading.sharpness for reading in readings if reading.sharpness is not None]
        sizes = {reading.size for reading in readings}
        height, width = sizes.pop() if len(sizes) == 1 else (None, None)
        profile = CameraProfile(
            n=len(readings),
            frame_height=height,
            frame_width=width,
            brightness=_range(reading.brightness for reading in readings),
            dark=_range(reading.dark for reading in readings),
            bright=_range(reading.bright for reading in readings),
            clipped=_range(reading.clipped for reading in readings),
            sharpness=_range(sharpness) if 2 * len(sharpness) >= len(readings) else None,
            textured=_range(reading.textured for reading in readings),
            noise=_range(reading.noise for reading in readings),
            colour=_range(reading.colour for reading in readings),
            flicker=_flicker_of([reading.brightness for reading in readings]),
        )
        blind = dict(_blind(profile))
        if profile.sharpness is None:
            blind["camera-blurred"] = "the material has no texture whose sharpness could be measured"
        elif not _notices_blur(profile, self._defocused):
            blind["camera-blurred"] = f"a blur of {DEFOCUS:g} pixels is no plainer than the difference of good frames"
        if height is None:
            blind["camera-moved"] = blind["camera-size"] = "the good frames have several sizes"
            return profile.model_copy(update={"blind": blind})
        pictures = [reading.small for reading in readings]
        reference = np.rint(np.mean(pictures, axis=0)).astype(np.uint8)
        landmarks = Landmarks(reference)
        likeness = float(np.quantile([landmarks.shift(small)[0] for small in pictures], 0.01))
        why_not = why_no_landmarks(pictures, landmarks, likeness)
        if why_not is not None:
            return profile.model_copy(update={"blind": blind | {"camera-moved": why_not}})
        return profile.model_copy(
            update={
                "reference": reference.tobytes(),
                "reference_height": reference.shape[0],
                "reference_width": reference.shape[1],
                "likeness": likeness,
                "blind": blind,
            }
        )


DEFOCUS = 2.0
"""Standard deviation, pixels, of the blur that `station calibrate` tries the sharpness rule with."""


def _range(values: Iterable[float]) -> Range:
    """Nearly all of the values: one odd frame among a hundred must not widen the range for ever."""
    low, high = np.quantile(list(values), (0.01, 0.99))
    return Range(low=float(low), high=float(high))


def _blind(profile: CameraProfile) -> Iterable[tuple[CameraRule, str]]:
    if profile.bright.low < _BLACK:
        words = "good frames are nearly black themselves"
        yield from (("camera-black", words), ("camera-dark", words))
    if profile.dark.high + _light_margin(profile.dark) >= CLIPPED:
        yield "camera-bright", "good frames are nearly white themselves"
    if profile.clipped.high > _CLIPPED_SHARE:
        yield "camera-saturated", "good frames are white themselves"
    if _colour_sign(profile.colour) == 0:
        yield "camera-colours", "the material is grey, and a wrong order of colours then changes nothing"
    if _FLICKER_MARGIN * profile.flicker > math.log(1.5):
        yield "camera-flicker", "good frames differ as much from one to the next"


def _notices_blur(profile: CameraProfile, defocused: Sequence[float | None]) -> bool:
    values = [value for value in defocused if value is not None]
    limit = _sharpness_limit(profile, 1.0)
    return bool(values) and limit is not None and float(np.quantile(values, 0.9)) < limit


# --- the rules on one frame ---


def _light_margin(healthy: Range) -> float:
    return max(_LIGHT_MARGIN * healthy.high, _LIGHT_RANGE_MARGIN * healthy.span, 8.0)


def _light(reading: Reading, profile: CameraProfile | None, margin: float) -> Fault | None:
    if profile is None:
        darkest, most, lightest, was = _BLACK, _CLIPPED_SHARE, 255.0, f"brightness {reading.brightness:.0f}"
    else:
        darkest = profile.bright.low - margin * min(_light_margin(profile.bright), 0.5 * profile.bright.low)
        most = profile.clipped.high + margin * 0.5 * (1 - profile.clipped.high)
        lightest = profile.dark.high + margin * _light_margin(profile.dark)
        was = f"brightness {reading.brightness:.0f}, healthy {profile.brightness}"
    # Less light darkens the dark pixels as well; a hole that shows a grey table takes light from the bright ones only.
    if reading.bright < darkest and (profile is None or reading.dark <= max(profile.dark.low, _BLACK / 2)):
        black = profile is None or reading.bright < max(_BLACK, profile.bright.low / 4)
        code = "camera-black" if black else "camera-dark"
        return Fault(code, f"{1 - TAIL:.0%} of the picture is darker than {darkest:.0f} of 255 ({was})")
    if reading.clipped > most:
        return Fault("camera-saturated", f"{reading.clipped:.0%} of the picture is white ({was})")
    if reading.dark > lightest and (profile is None or reading.bright >= min(profile.bright.high, CLIPPED)):
        return Fault("camera-bright", f"{1 - TAIL:.0%} of the picture is brighter than {lightest:.0f} of 255 ({was})")
    return None


def _colour_sign(healthy: Range) -> int:
    """1: blue, -1: red, 0: grey or both."""
    return 1 if healthy.low >= _COLOUR_VISIBLE else -1 if healthy.high <= -_COLOUR_VISIBLE else 0


def _colours(reading: Reading, profile: CameraProfile) -> Fault | None:
    """Blue and red exchanged: the frame lies on the other side of grey, about as far from it as healthy ones."""
    sign = _colour_sign(profile.colour)
    nearest, farthest = sorted((abs(profile.colour.low), abs(profile.colour.high)))
    if sign and 0.5 * nearest <= -sign * reading.colour <= 1.5 * farthest:
        healthy = "bluish" if sign > 0 else "reddish"
        return Fault("camera-colours", f"red and blue look exchanged: {healthy} at calibration, the opposite now")
    return None


def _sharpness_limit(profile: CameraProfile, margin: float) -> float | None:
    if profile.sharpness is None or profile.sharpness.low <= 0:
        return None
    span = math.log(profile.sharpness.high / profile.sharpness.low)
    limit = profile.sharpness.low * math.exp(-margin * max(_BLUR_MARGIN, _BLUR_RANGE_MARGIN * span))
    return min(limit, _SHARP_EDGES)


def _blurred(reading: Reading, profile: CameraProfile, margin: float) -> Fault | None:
    limit = _sharpness_limit(profile, margin)
    if limit is None or reading.sharpness is None or reading.sharpness >= limit:
        return None
    if reading.textured < _TEXTURE_LEFT * profile.textured.low:
        return None  # material that is missing has no texture to be sharp
    return Fault("camera-blurred", f"sharpness {reading.sharpness:.2g}, healthy {profile.sharpness}")


# --- the rules on several frames ---


def _flicker_of(brightness: Sequence[float]) -> float:
    """The highest flicker in any window of frames in the order of capture: the median swing up and down.

    A step that goes on in the same direction counts as none: so brightness changes when a large defect passes.
    """
    if len(brightness) < 3:
        return 0.0
    steps = np.diff(np.log(np.maximum(brightness, 8.0)))
    swings = np.where(steps[1:] * steps[:-1] < 0, np.minimum(np.abs(steps[1:]), np.abs(steps[:-1])), 0.0)
    window = min(_FLICKER_FRAMES - 2, len(swings))
    return float(np.median(np.lib.stride_tricks.sliding_window_view(swings, window), axis=1).max())


@final
class CameraWatch:
    """Looks at every frame before it is inspected.

    One thread calls ``check``; ``fault`` and ``reading`` may be read from any.

    Attributes:
        fault: what is wrong now; None: nothing. Outlives the faulty frame: see ``HealthSettings.recover_after``.
        reading: of the last frame; None before the first.
    """

    def __init__(self, profile: CameraProfile | None, settings: HealthSettings) -> None:
        """Start with a camera that is well.

        Args:
            profile: of good frames; without it only the rules that need none are at work.
            settings: which rules, and for how long.
        """
        self.fault: Fault | None = None
        self.reading: Reading | None = None
        self._profile = profile
        self._settings = settings
        self._off = frozenset(settings.ignore) | (profile.blind.keys() if profile else set())
        self._size = (profile.frame_height, profile.frame_width) if profile and profile.frame_height else None
        landmarks = profile.landmarks if profile else None
        self._landmarks = Landmarks(landmarks) if landmarks is not None else None
        self._before: UInt8Array | None = None
        self._same = 0  # frames that repeated the one before
        self._same_since = 0.0
        self._brightness: deque[float] = deque(maxlen=_FLICKER_FRAMES)
        self._good = 0  # frames since the last faulty one
        self._good_since = 0.0

    def check(self, frame: Frame) -> Fault | None:
        """What makes this frame unfit for inspection; None if nothing does."""
        self.reading = reading = measure(frame.image)
        same_for = self._watch_for_repeats(frame)
        self._brightness.append(reading.brightness)
        found = self._find(frame, reading, same_for)
        self._remember(found, frame.monotonic)
        return found

    def _find(self, frame: Frame, reading: Reading, same_for: float) -> Fault | None:
        profile = self._profile
        candidates = [
            self._wrong_size(frame, reading),
            Fault("camera-truncated", frame.damage) if frame.damage else None,
            self._flicker(),
            _light(reading, profile, self._margin("camera-black", "camera-dark", "camera-saturated", "camera-bright")),
            self._frozen(same_for),
        ]
        if profile is not None:
            candidates += [
                _colours(reading, profile),
                _blurred(reading, profile, self._margin("camera-blurred")),
                self._moved(reading, profile),
            ]
        return next((fault for fault in candidates if fault and fault.code not in self._off), None)

    def _margin(self, *codes: str) -> float:
        return RELEASE if self.fault and self.fault.code in codes else 1.0

    def _wrong_size(self, frame: Frame, reading: Reading) -> Fault | None:
        if self._size is None:
            if frame.name or self._profile:  # files may have any size
                return None
            self._size = reading.size
        if reading.size == self._size:
            return None
        (height, width), (wanted_height, wanted_width) = reading.size, self._size
        return Fault("camera-size", f"{width} x {height} pixels instead of {wanted_width} x {wanted_height}")

    def _watch_for_repeats(self, frame: Frame) -> float:
        """Seconds for which the camera has sent this very picture."""
        image, before = frame.image, self._before
        self._before = image
        if before is not None and before.shape == image.shape and _equal(image, before) and not frame.name:
            self._same += 1
        else:
            self._same, self._same_since = 0, frame.monotonic
        return frame.monotonic - self._same_since

    def _frozen(self, same_for: float) -> Fault | None:
        limit = self._settings.frozen_after
        if limit is None or self._same < _FROZEN_FRAMES or same_for < limit:
            return None
        return Fault("camera-frozen", f"the same picture for {same_for:.0f} s")

    def _moved(self, reading: Reading, profile: CameraProfile) -> Fault | None:
        if self._landmarks is None:
            return None
        shift = moved(reading.small, self._landmarks, profile.likeness, self._margin("camera-moved"))
        if shift is None:
            return None
        scale = max(reading.size) / max(reading.small.shape)
        right, down = round(scale * shift[1]), round(scale * shift[0])
        return Fault("camera-moved", f"the view has shifted by {right:+} pixels to the right and {down:+} down")

    def _flicker(self) -> Fault | None:
        if self._profile is None or len(self._brightness) < _FLICKER_FRAMES:
            return None
        flicker = _flicker_of(self._brightness)
        if flicker <= self._margin("camera-flicker") * max(_FLICKER, _FLICKER_MARGIN * self._profile.flicker):
            return None
        usual = math.expm1(self._profile.flicker)
        return Fault(
            "camera-flicker",
            f"the brightness changes by {math.expm1(flicker):.0%} from frame to frame, usually {usual:.1%}",
        )

    def _remember(self, found: Fault | None, now: float) -> None:
        if found is not None:
            self.fault, self._good = found, 0
        elif self.fault is not None:
            if self._good == 0:
                self._good_since = now
            self._good += 1
            if self._good >= _GOOD_FRAMES and now - self._good_since >= self._settings.recover_after:
                self.fault = None


def _equal(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return np.array_equal(a[::16], b[::16]) and np.array_equal(a, b)
