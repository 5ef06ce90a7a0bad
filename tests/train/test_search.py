"""The search for settings: in this process where it can be, by the real command where processes matter."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import optuna
import pytest
import typer

from engines.engine import PatchScores
from engines.images import find_images
from train import checkpoint, held_out, search
from train.commands import fit
from train.commands.search import _options, _parse
from train.config import FitConfig
from train.data import TrainingImages
from train.errors import CheckpointError, DataError, DivergedError
from train.held_out import Validator
from train.search import (
    SPACE,
    STUDY_FILE,
    Search,
    Tried,
    begin,
    best_of,
    open_study,
    rounded,
    to_search,
    tried,
    try_settings,
)
from train.search_page import render

TINY = {"width": 2, "latent_size": 8, "batch_size": 2}
TINY_OPTIONS = ["--width", "2", "--latent-size", "8", "--batch-size", "2", "--holdout", "0.5"]
SIZE = 64


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Images of one patch each, so that a validation takes a second."""
    folder = tmp_path_factory.mktemp("good")
    for i in range(16):
        pixels = cv2.GaussianBlur(np.random.default_rng(i).normal(120, 60, (SIZE, SIZE)), (0, 0), 1)
        cv2.imwrite(str(folder / f"{i:02}.png"), pixels.clip(0, 255).astype(np.uint8))
    return folder


@pytest.fixture
def few(monkeypatch) -> None:
    """Two planted frames of each kind, for tests in this process."""
    monkeypatch.setattr(held_out, "PLANTED", 14)


def made(good: Path, out: Path, **settings) -> Search:
    base = FitConfig(**({**TINY, "holdout": 0.5, "steps": 6} | settings))
    return Search(good, out, base, to_search(base, [*TINY, "holdout"]), precision="32-true")


def loaded(job: Search) -> TrainingImages:
    *_, images = job.load()
    assert isinstance(images, TrainingImages)
    return images


def attempt(job: Search, n: int, on_step=lambda share: None) -> list[Tried]:
    """What a worker does, here."""
    images = loaded(job)
    validator = Validator(images, job.base)
    with open_study(job.out) as study:
        begin(study, job, images.fingerprint)
        study.optimize(lambda trial: try_settings(trial, job, images, validator, on_step), n, catch=search.FAILURES)
        return tried(study)


def test_the_first_trial_has_the_default_settings_and_leaves_a_run(good, few, tmp_path):
    job = made(good, tmp_path)
    first, second = attempt(job, 2)
    assert first.settings == {name: getattr(FitConfig(), name) for name in job.searched}
    assert second.settings != first.settings
    for trial in (first, second):
        assert trial.state == "finished"
        assert trial.validation["n_good"] == 4
        assert trial.validation["n_planted"] == 16
        assert trial.auroc == round(trial.validation["image_auroc"], 6)
        run = checkpoint.load_trained(tmp_path / "trials" / f"{trial.number:04d}")
        assert run.step == 6
        assert all(getattr(run.config, name) == value for name, value in trial.settings.items())
        assert run.config.width == 2


def test_no_frame_is_compared_with_itself_and_none_was_trained_on(good, tmp_path):
    images = loaded(made(good, tmp_path))
    validator = Validator(images, made(good, tmp_path).base)
    fitted = {frame.tobytes() for frame in validator._fitted}
    judged = {frame.tobytes() for frame in validator._judged}
    trained = {np.repeat(image, 3, axis=2).tobytes() for image in images.images}
    assert len(fitted) == len(judged) == 4
    assert not fitted & judged
    assert not (fitted | judged) & trained
    assert len(fitted | judged | trained) == len(find_images(good))


def test_no_patch_is_scored_twice_and_all_get_their_own_scores():
    class Counting:
        info = None
        seen = 0

        def score(self, patches):
            self.seen += len(patches)
            sums = patches.sum(axis=(1, 2, 3)).astype(np.float32)
            return PatchScores(sums, sums + 1, patches[..., 0].astype(np.float32))

    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    engine = Counting()
    remembering = held_out._Remembering(engine)
    for order in ([0, 1, 2], [2, 1, 0], [3, 0, 3, 4], [4]):
        given, scores = patches[order], remembering.score(patches[order])
        assert np.array_equal(scores.reconstruction_error, given.sum(axis=(1, 2, 3)))
        assert np.array_equal(scores.feature_error, scores.reconstruction_error + 1)
        assert np.array_equal(scores.residual, given[..., 0])
        assert scores.anomaly_map is None
    assert engine.seen == 5


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(held_out, "_REMEMBERED", 2)

    class Zeros:
        def score(self, patches):
            return PatchScores.empty(len(patches), 8, anomaly_map=True)

    remembering = held_out._Remembering(Zeros())
    scores = remembering.score(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    assert scores.anomaly_map.shape == (6, 8, 8)
    assert len(remembering._known) == 2


def test_a_run_without_a_locator_is_judged_by_the_paper_s_score(good, few, tmp_path):
    job = made(good, tmp_path, locator=False)
    assert not {"smoothing", "locator_lr"} & set(job.searched)
    (trial,) = attempt(job, 1)
    assert trial.state == "finished"


def test_a_trial_that_diverges_fails_and_the_search_goes_on(good, few, tmp_path, monkeypatch):
    job = made(good, tmp_path)
    train = search.train

    def diverge(trainer, run, **more):
        if run.name == "0000":
            raise DivergedError("image_consistency became NaN")
        return train(trainer, run, **more)

    monkeypatch.setattr(search, "train", diverge)
    first, second = attempt(job, 2)
    assert (first.state, first.failure, first.auroc) == ("failed", "image_consistency became NaN", None)
    assert second.state == "finished"
    assert best_of([first, second]) == second
    assert best_of([first]) is None


def test_weights_that_are_nan_fail_the_trial(good, few, tmp_path, monkeypatch):
    """With fewer steps than there are between two records, only the score tells."""
    job = made(good, tmp_path)
    train = search.train

    def spoilt(trainer, run, **more):
        for weights in trainer.ema_generator.parameters():
            weights.data.fill_(float("nan"))
        return train(trainer, run, **more)

    monkeypatch.setattr(search, "train", spoilt)
    (trial,) = attempt(job, 1)
    assert trial.state == "failed"
    assert "NaN" in trial.failure or "nan" in trial.failure


def test_a_trial_that_falls_behind_is_cut_short(good, few, tmp_path, monkeypatch):
    job = made(good, tmp_path, steps=3)
    monkeypatch.setattr(search.optuna.pruners, "MedianPruner", lambda n: optuna.pruners.ThresholdPruner(lower=1.5))
    (trial,) = attempt(job, 1)
    assert trial.state == "cut short"
    assert trial.auroc is not None
    assert best_of([trial]) is None


def test_the_time_of_validations_is_not_of_the_budget(good, few, tmp_path, monkeypatch):
    """By steps, so that no time is measured: all of them are done, however often training pauses."""
    seen = []
    attempt(made(good, tmp_path, steps=30), 1, on_step=seen.append)
    assert max(seen) == 1.0
    training = [share for share in seen if share < 1]
    assert {round(share * 30) for share in training} >= set(range(30))


def test_an_interrupted_trial_does_not_count(good, few, tmp_path):
    job = made(good, tmp_path)
    attempt(job, 1)

    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(job, 1, on_step=interrupt)
    with open_study(tmp_path) as study:
        assert [trial.number for trial in tried(study)] == [0]
        assert len(study.trials) == 2
    assert [trial.number for trial in attempt(job, 1)] == [0, 2]


def test_another_search_in_the_same_folder_is_refused(good, tmp_path):
    job = made(good, tmp_path)
    with open_study(tmp_path) as study:
        begin(study, job, "a")
        begin(study, job, "a")
        assert len(study.trials) == 1
        with pytest.raises(CheckpointError, match="other images"):
            begin(study, job, "b")
        with pytest.raises(CheckpointError, match=r"was started with steps = 6"):
            begin(study, replace(job, base=FitConfig(**TINY, holdout=0.5, steps=7)), "a")
        with pytest.raises(CheckpointError, match="other settings to search"):
            begin(study, replace(job, searched=("lr",)), "a")


def test_a_foreign_file_is_told_by_name(tmp_path):
    (tmp_path / STUDY_FILE).write_text("no database at all, but long enough to be taken for a header of one" * 20)
    with pytest.raises(CheckpointError, match=rf"{STUDY_FILE}: no study"), open_study(tmp_path):
        pass


def test_too_few_images_to_hold_some_out(good, tmp_path):
    with pytest.raises(DataError, match=r"16 images are too few.*--holdout"):
        loaded(made(good, tmp_path, holdout=0.1))


def test_what_is_given_is_not_searched():
    base = FitConfig()
    assert to_search(base, []) == tuple(SPACE)
    assert "width" not in to_search(base, ["width"])
    assert "alpha" not in to_search(FitConfig(alpha=0.5), ["preset"])  # as a preset does
    assert set(SPACE) - set(to_search(FitConfig(locator=False), [])) == {"smoothing", "locator_lr"}


def test_defaults_lie_in_the_space_and_every_setting_is_an_option_of_fit():
    with open_study_in_memory() as study:
        study.enqueue_trial({name: getattr(FitConfig(), name) for name in SPACE})
        trial = study.ask()
        assert {name: suggest(trial, name) for name, suggest in SPACE.items()} == {
            name: getattr(FitConfig(), name) for name in SPACE
        }
        for _ in range(20):
            trial = study.ask()
            settings = {name: rounded(suggest(trial, name)) for name, suggest in SPACE.items()}
            given, _ = _parse(_options(settings))
            assert given == settings
            assert fit.new_config(given).model_dump().items() >= settings.items()


class open_study_in_memory:  # noqa: N801
    def __enter__(self):
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def __exit__(self, *error):
        return None


def test_fit_options_are_fit_s_own():
    given, how = _parse(["--frame-size", "96x128", "--rotate", "5", "--no-locator", "--skip-bad", "--lambda", "0.2"])
    assert given == {"frame_size": (96, 128), "rotate": (-5.0, 5.0), "locator": False, "lambda": 0.2}
    assert how == {"precision": "auto", "skip_bad": True}
    with pytest.raises(typer.BadParameter, match="before --"):
        _parse(["--minutes", "5"])
    with pytest.raises(typer.BadParameter, match="no use"):
        _parse(["--protocol", "paper"])


EVIL = "<script>alert(1)</script>"


def trial(number: int, auroc: float | None, state: str = "finished", failure: str | None = None) -> Tried:
    kinds = {"dent": {"n": 12, "image_auroc": 0.9, "caught": 0.5}}
    validation = {"pixel_auroc": 0.8, "caught": 0.25, "kinds": kinds} if auroc else None
    settings = {"lr": 1e-4 * (number + 1), "flip": number % 2 == 0}
    return Tried(number, state, auroc, settings, 12.0, validation, failure)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, 0.7)],
        [trial(0, None, "failed", EVIL), trial(1, 0.6, "cut short")],
        [trial(i, 0.5 + 0.04 * i) for i in range(9)] + [trial(9, 0.4, "cut short"), trial(10, None, "running")],
    ],
    ids=["none", "one", "no best", "many"],
)
def test_the_page_shows_every_trial_and_fetches_nothing(trials):
    page = render(trials, data=EVIL, budget="3 minutes", command="station-train fit")
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("r='3.5'") == sum(t.auroc is not None for t in trials) * (
        1 + len(trials[0].settings) if trials else 0
    )
    best = best_of(trials)
    assert ("auROC " + f"{best.auroc:.4f}" in page) if best else ("No trial has finished" in page)


def station_train(*args: str) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.Popen(
        [sys.executable, "-m", "train", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def search_args(good: Path, out: Path, trials: int, steps: int = 6) -> list[str]:
    return [
        *("search", "--data", str(good), "--out", str(out), "--trials", str(trials), "--steps", str(steps)),
        *("--threads", "1"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_command_two_workers_join_resume_and_a_command_that_trains(good, tmp_path):
    out = tmp_path / "leather"
    process = station_train(*search_args(good, out, 3), "--workers", "2", "--", *TINY_OPTIONS)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = json.loads((out / "search.json").read_text())
    assert [t["number"] for t in found["trials"]] == [0, 1, 2]  # three, not four, though two work
    assert {t["state"] for t in found["trials"]} == {"finished"}
    assert found["best"]["auroc"] == max(t["auroc"] for t in found["trials"])
    assert found["fit"] in output
    assert [path.name for path in (out / "trials").iterdir()] == [f"{found['best']['number']:04d}"]
    assert f"trial {found['best']['number']} of 3" in output
    assert "<svg" in (out / "search.html").read_text()

    # The same command with more trials goes on; with as many it only tells.
    process = station_train(*search_args(good, out, 4), "--", *TINY_OPTIONS)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    again = json.loads((out / "search.json").read_text())
    assert again["trials"][:3] == found["trials"]
    assert len(again["trials"]) == 4
    assert "trial 3 " in output
    assert "trial 2 " not in output.replace("best: trial 2", "")

    program, command, *options = shlex.split(again["fit"])
    assert (program, command, options[:4]) == ("station-train", "fit", ["--data", str(good), "--out", "runs/leather"])
    config = fit.new_config(_parse(options)[0])
    assert all(getattr(config, name) == value for name, value in again["best"]["settings"].items())
    assert (config.holdout, config.width) == (0.5, 2)


@pytest.mark.slow
def test_command_ctrl_c_keeps_what_has_finished(good, tmp_path):
    out = tmp_path / "leather"
    (first,) = attempt(made_by_command(good, out), 1)
    process = station_train(*search_args(good, out, 9, steps=100_000), "--", *TINY_OPTIONS)
    while not (out / "trials" / "0001").is_dir():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "To go on:\n  station-train search --data" in output
    found = json.loads((out / "search.json").read_text())
    assert [t["number"] for t in found["trials"]] == [0]
    assert found["best"]["auroc"] == first.auroc
    assert [path.name for path in (out / "trials").iterdir()] == ["0000"]


def made_by_command(good: Path, out: Path) -> Search:
    """As the command makes it, but for the steps that its first trial really takes."""
    given, how = _parse(TINY_OPTIONS)
    base = fit.new_config(given | {"steps": 100_000})
    job = Search(good, out, base, to_search(base, list(given)), **how)
    # Six steps of a hundred thousand: the study is that of the command, the trial is short.
    return _Short(**{name: getattr(job, name) for name in job.__dataclass_fields__})


class _Short(Search):
    def config(self, settings):
        return super().config(settings | {"steps": 6})


def test_command_says_what_is_wrong(good, tmp_path):
    for args, code, expected in (
        (["--", "--minutes", "3"], 2, "give it before --"),
        (["--", "--alpha", "2"], 2, "--alpha"),
        (["--", "--colour"], 2, "--colour"),
        (["--", "--holdout", "0.1"], 1, "too few"),
    ):
        process = station_train(*search_args(good, tmp_path / "x", 1), *args)
        output, _ = process.communicate()
        assert process.returncode == code, output
        assert expected in output
        assert not (tmp_path / "x").exists()
