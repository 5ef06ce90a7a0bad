"""calibration.json comes from a disk that others write to."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.bundle import Bundle
from station.calibration import MAX_FILE_BYTES, CalibrationError, load_calibration
from tests.support.bundles import make_bundle
from tests.support.calibrations import make_calibration


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy", 16)


@pytest.fixture(scope="module")
def good(bundle: Bundle) -> bytes:
    return make_calibration(bundle).model_dump_json(by_alias=True).encode()


def changed(good: bytes, change: str, value: object) -> bytes:
    raw = json.loads(good)
    *sections, key = change.split("/")
    section = raw
    for name in sections:
        section = section[name]
    section[key] = value
    return json.dumps(raw).encode()


def test_what_is_altered_below_is_good(tmp_path: Path, bundle: Bundle, good: bytes) -> None:
    (tmp_path / "calibration.json").write_bytes(good)
    assert load_calibration(tmp_path / "calibration.json", bundle).bundle_sha256 == bundle.digest


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("threshold", float("nan"), "threshold"),
        ("threshold", float("inf"), "threshold"),
        ("threshold", 0, "threshold"),
        ("threshold", "1e400", "threshold"),
        ("good/quantiles", {"0.5": float("nan"), "1": 1}, "quantiles"),
        ("good/quantiles", {"0.1": 1.0}, "quantiles: Value error, lacks 0.5, 1"),
        ("good/std", -1, "std"),
        ("tail/scale", 0, "scale"),
        ("n_good", 0, "n_good"),
        ("surprise", 1, "surprise"),
        ("created_at", "yesterday", "created_at"),
        ("bundle_sha256", "../../etc/passwd", "bundle_sha256"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    tmp_path: Path, bundle: Bundle, good: bytes, change: str, value: object, message: str
) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(changed(good, change, value))
    with pytest.raises(CalibrationError, match=message):
        load_calibration(path, bundle)


@pytest.mark.parametrize(
    "text", [b"", b"[" * 200_000, b"\xff\xfe", b"null", b'{"a": NaN}', b" " * (MAX_FILE_BYTES + 1)]
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, bundle: Bundle, text: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(text)
    with pytest.raises(CalibrationError, match=r"calibration\.json: "):
        load_calibration(path, bundle)


def test_a_pipe_is_no_calibration_and_a_link_to_one_is(tmp_path: Path, bundle: Bundle, good: bytes) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CalibrationError, match="not a regular file"):
        load_calibration(tmp_path / "pipe", bundle)
    (tmp_path / "real.json").write_bytes(good)
    (tmp_path / "link.json").symlink_to("real.json")
    assert load_calibration(tmp_path / "link.json", bundle).threshold > 0
    (tmp_path / "circle.json").symlink_to("circle.json")
    with pytest.raises(CalibrationError, match=r"circle\.json: cannot be read"):
        load_calibration(tmp_path / "circle.json", bundle)


@given(st.data())
def test_damage_ends_in_a_calibration_or_in_words(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, good: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(damaged)
    with suppress(CalibrationError):  # any other error fails the test
        calibration = load_calibration(path, bundle)
        assert all(math.isfinite(x) for x in (calibration.threshold, calibration.good.median, calibration.good.highest))
