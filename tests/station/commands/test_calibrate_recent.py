"""``station calibrate --from-recent`` on a ring as the daemon keeps it."""

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from typer.testing import CliRunner

from station.calibration import CalibrationError, load_calibration
from station.cli import app
from station.frames import Frame
from station.recent import RecentFrames
from station.settings import HealthSettings, load_settings
from tests.support.bundles import GREY, make_bundle
from tests.support.calibrations import make_calibration

START = datetime(2024, 5, 1, 8, tzinfo=timezone.utc)


def station(*arguments, answer=None):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)], input=answer)


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle", 32)


@pytest.fixture
def config(tmp_path, bundle):
    path = tmp_path / "station.toml"
    path.write_text(
        'bundle = "bundle"\ncalibration = "limits/calibration.json"\nstate = "state"\n'
        '[camera]\nurl = "v4l2:///dev/no-such-camera"\n'
    )
    return path


@pytest.fixture
def old(tmp_path, bundle):
    """A calibration whose threshold lies far below what the ring's frames score."""
    path = tmp_path / "limits" / "calibration.json"
    path.parent.mkdir()
    path.write_text(make_calibration(bundle, threshold=20.0).model_dump_json(by_alias=True))
    return path


def fill(folder, n=40, spots=(), every=timedelta(minutes=5), seed=0):
    """Noisy frames, those in ``spots`` with a bright spot and known as anomalous, as the daemon writes them."""
    rng = np.random.default_rng(seed)
    ring = RecentFrames(folder, HealthSettings(recent_every=0))
    for i in range(n):
        image = (GREY + rng.normal(0, rng.uniform(3, 6), (64, 96, 3))).clip(0, 255).astype(np.uint8)
        if i in spots:
            image[20:40, 30:60] = 230
        ring.keep(Frame(i + 1, image, START + i * every, float(i)), 12.0, anomalous=i in spots)
    assert ring.trouble is None


def test_a_confirmed_recalibration_replaces_the_old_one_and_keeps_it(tmp_path, bundle, config, old):
    fill(tmp_path / "state" / "recent", spots=(7,))
    before = old.read_bytes()
    result = station("--config", config, "--from-recent", answer="y\n")
    assert result.exit_code == 0, result.output
    calibration = load_calibration(old, bundle)
    assert calibration.n_good == 39
    assert len(calibration.good_scores) == 39
    assert calibration.false_alarms.rate == 1e-2, "the budget stays what it was"
    assert calibration.camera.source == "v4l2:///dev/no-such-camera"
    [kept] = old.parent.glob("calibration.json.*.bak")
    assert kept.read_bytes() == before
    assert sorted(path.name for path in old.parent.iterdir() if path != kept) == [
        "calibration.html",
        "calibration.json",
        "calibration.svg",
    ]
    page = old.with_suffix(".html").read_text()
    assert page.count("<img alt='frame ") == 40
    words = " ".join(result.output.split())
    assert "Recent frames of 2024-05-01 08:00 to 2024-05-01 11:15 UTC." in words
    assert f"Threshold: {calibration.threshold:.5g}, 20 before." in words
    alarms = sum(score > calibration.threshold for score in calibration.good_scores)
    assert f"Of 39 frames (used) would alarm: {alarms} ({100 * alarms / 39:.1f} %), before 39 (100.0 %)." in words
    assert "Of 1 frames (left out, anomalous when they were kept) would alarm: 1 (100.0 %)" in words
    assert "station/v1/site/line/station/cmd/reload" in words


def test_the_contact_sheet_has_the_highest_first_and_says_what_becomes_of_them(tmp_path, config, old):
    fill(tmp_path / "state" / "recent", n=60, spots=(7,))
    station("--config", config, "--from-recent", answer="n\n")
    page = old.with_name("calibration.proposed.html").read_text()
    sheet = page.split("<section id='highest-frames'>")[1].split("</section>")[0]
    captions = [part.split("</figcaption>")[0] for part in sheet.split("<figcaption>")[1:]]
    assert len(captions) == 48
    scores = [float(caption.split("score ")[1].split(";")[0]) for caption in captions]
    assert scores == sorted(scores, reverse=True)
    assert captions[0].startswith("2024-05-01 08:35:00 UTC; ")
    assert captions[0].endswith("alarm now; alarm with the new threshold; was anomalous, left out")
    assert captions[-1].endswith("alarm now; good with the new threshold")


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])  # the last: nobody there to answer
def test_without_a_yes_nothing_changes(tmp_path, config, old, answer):
    fill(tmp_path / "state" / "recent")
    before = old.read_bytes()
    result = station("--config", config, "--from-recent", answer=answer)
    assert result.exit_code == 1
    assert "Nothing has changed" in result.output
    assert old.read_bytes() == before
    assert sorted(path.name for path in old.parent.iterdir()) == ["calibration.json", "calibration.proposed.html"]


def test_yes_does_not_ask(tmp_path, config, bundle, old):
    fill(tmp_path / "state" / "recent")
    result = station("--config", config, "--from-recent", "--yes", "--false-alarms", "0.05")
    assert result.exit_code == 0, result.output
    assert load_calibration(old, bundle).false_alarms.rate == 0.05
    assert not old.with_name("calibration.proposed.html").exists()


def test_the_first_calibration_may_be_from_recent_frames(tmp_path, config, bundle):
    fill(tmp_path / "state" / "recent")
    result = station("--config", config, "--from-recent", "--yes")
    assert result.exit_code == 0, result.output
    settings = load_settings(config)
    assert load_calibration(settings.calibration, bundle).false_alarms.rate == 1e-3
    assert not list(settings.calibration.parent.glob("*.bak"))


def test_anomalous_frames_are_taken_when_asked_for(tmp_path, config, bundle, old):
    fill(tmp_path / "state" / "recent", spots=tuple(range(0, 40, 2)))
    result = station("--config", config, "--from-recent", answer="n\n")
    assert "20 of 40 recent frames were anomalous and are left out" in " ".join(result.output.split())
    result = station("--config", config, "--from-recent", "--include-anomalous", "--yes")
    assert result.exit_code == 0, result.output
    assert load_calibration(old, bundle).n_good == 40


def test_what_goes_before_the_calibration_is_told(tmp_path, config, bundle, old):
    fill(tmp_path / "state" / "recent", every=timedelta(seconds=30))
    override = {
        "threshold": 55.5,
        "by": "shift lead",
        "at": "2024-05-01T00:00:00Z",
        "replaces": {"threshold": 20.0, "source": "calibration"},
    }
    (tmp_path / "state" / "threshold.json").write_text(json.dumps(override))
    words = " ".join(station("--config", config, "--from-recent", answer="n\n").output.split())
    assert "55.5 before." in words
    assert "55.5, was set by command" in words
    assert "from 20 minutes only" in words
    config.write_text(config.read_text() + "[judge]\nthreshold = 33\n")
    words = " ".join(station("--config", config, "--from-recent", answer="n\n").output.split())
    assert "33 before." in words
    assert "judge.threshold = 33" in words


def test_an_empty_ring_is_explained(tmp_path, config):
    result = station("--config", config, "--from-recent")
    assert isinstance(result.exception, CalibrationError)
    assert f"{tmp_path / 'state' / 'recent'}: no recent frames" in str(result.exception)
    assert "STATE_DIRECTORY" in str(result.exception)


def test_a_damaged_frame_is_left_out(tmp_path, config, bundle, old):
    ring = tmp_path / "state" / "recent"
    fill(ring)
    next(iter(sorted(ring.iterdir()))).write_bytes(b"nothing")
    result = station("--config", config, "--from-recent", "--yes")
    assert result.exit_code == 0, result.output
    assert load_calibration(old, bundle).n_good == 39


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bundle", "b", "--from-recent"), "needs --config"),
        (("--config", "c", "--good", ".", "--from-recent"), "takes the place of --good"),
        (("--config", "c", "--yes"), "goes with --from-recent"),
        (("--config", "c", "--include-anomalous"), "goes with --from-recent"),
    ],
)
def test_wrong_options_are_explained(arguments, words):
    result = station(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
