"""Search for settings: many short runs, each judged by defects planted into held-out good images.

Optuna keeps the study in a SQLite file, which any number of processes share: the workers of one command, and those of
another that joins it. No test image is looked at.
"""

import fcntl
import logging
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import connection, get_context
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

import optuna
import structlog
import torch
from lightning_fabric import Fabric
from optuna.trial import FrozenTrial, Trial, TrialState

from train import checkpoint
from train.checkpoint import load_trained
from train.config import FitConfig
from train.data import TrainingImages, find_training_images, load_training_images
from train.errors import CheckpointError, DataError, DivergedError
from train.fit import Interrupted, Progress, Trainer, train
from train.held_out import Validator
from train.memory import keep_freed_memory
from train.precision import Precision, choose_precision

STUDY_FILE = "study.db"
TRIALS_FOLDER = "trials"
CHECKS = 3  # validations of a trial, evenly spread over its budget; the last is its result
FEWEST_JUDGED = 8  # held-out images; half of them tell what good material looks like
STARTUP_TRIALS = 5  # trials to compare with before any is cut short
FAILURES = (DivergedError, DataError, RuntimeError)  # the last: out of memory
_HEARTBEAT, _GRACE = 15, 60  # seconds; a trial without sign of life for longer belongs to a process that was killed
_PATIENCE = 60.0  # seconds for workers to end between two steps

SPACE: dict[str, Callable[[Trial, str], Any]] = {
    "width": lambda trial, name: trial.suggest_int(name, 4, 32, log=True),
    "smoothing": lambda trial, name: trial.suggest_float(name, 1.0, 12.0, log=True),
    "alpha": lambda trial, name: trial.suggest_float(name, 1e-4, 0.3, log=True),
    "warm_start": lambda trial, name: trial.suggest_float(name, 0.3, 1.0),
    "warm_lr": lambda trial, name: trial.suggest_float(name, 3e-4, 1e-2, log=True),
    "lr": lambda trial, name: trial.suggest_float(name, 3e-5, 1e-3, log=True),
    "locator_lr": lambda trial, name: trial.suggest_float(name, 3e-4, 1e-2, log=True),
    "batch_size": lambda trial, name: trial.suggest_categorical(name, [8, 16, 32, 64]),
    "flip": lambda trial, name: trial.suggest_categorical(name, [False, True]),
}
"""What is searched, and where; names are those of FitConfig."""

_OF_LOCATOR = {"smoothing", "locator_lr"}
_STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "cut short", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Search:
    """What is searched; the same for all that work on it.

    Attributes:
        data: folder of good images, or a data set in MVTec AD layout.
        out: folder of the study.
        base: settings of every trial, its budget among them; the searched ones are replaced.
        searched: names in ``SPACE``.
        precision: as ``fit`` takes it.
        skip_bad: leave out unreadable images.
        threads: CPU threads of a worker.
    """

    data: Path
    out: Path
    base: FitConfig
    searched: tuple[str, ...]
    precision: Literal["auto"] | Precision = "auto"
    skip_bad: bool = False
    threads: int = 1

    def load(self) -> Iterator[int | TrainingImages]:
        """Read the images; a count after each file, then the images.

        Raises:
            DataError: they cannot be used, or too few are held out to judge by.
        """
        for item in load_training_images(find_training_images(self.data), self.base, skip_bad=self.skip_bad):
            if isinstance(item, TrainingImages) and len(item.held_out) < FEWEST_JUDGED:
                n = len(item.images) + len(item.held_out)
                raise DataError(
                    f"{self.data}: {n} images are too few to judge a trial by, which takes {FEWEST_JUDGED} held-out "
                    "ones; take more images, or a larger share with -- --holdout SHARE"
                )
            yield item

    def config(self, settings: dict[str, Any]) -> FitConfig:
        """Settings of a trial."""
        return FitConfig.model_validate(self.base.model_dump(by_alias=True) | settings)


def to_search(base: FitConfig, given: Sequence[str]) -> tuple[str, ...]:
    """Which settings of ``SPACE`` are searched: those neither ``given`` nor decided by the preset, and of use.

    Args:
        base: the settings.
        given: names of those that the user chose.
    """
    fixed = {name for name in SPACE if getattr(base, name) != FitConfig.model_fields[name].default} | set(given)
    return tuple(name for name in SPACE if name not in fixed and (base.locator or name not in _OF_LOCATOR))


@dataclass(frozen=True)
class Tried:
    """A trial, as far as it got.

    Attributes:
        number: from 0; 0 is the default settings.
        state: ``finished``, ``cut short`` (worse than half of those before it), ``failed`` or ``running``.
        auroc: image auROC of its last validation; None before the first.
        settings: what was searched, by name.
        seconds: of training.
        validation: the last one in full, as JSON; None if there is none.
        failure: why it failed.
    """

    number: int
    state: str
    auroc: float | None
    settings: dict[str, Any]
    seconds: float
    validation: dict[str, Any] | None
    failure: str | None


@contextmanager
def open_study(out: Path) -> Iterator[optuna.Study]:
    """The study in ``out``, made if it is not there.

    Raises:
        CheckpointError: ``study.db`` is not one.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    path = out / STUDY_FILE
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # heartbeats have been experimental since 2021, constant liars until Optuna 5
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path.resolve()}",
                engine_kwargs={"connect_args": {"timeout": 60}},
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
            )
            study = optuna.create_study(
                storage=storage,
                study_name="search",
                load_if_exists=True,
                direction="maximize",
                # With a liar, workers side by side do not all try the same.
                sampler=optuna.samplers.TPESampler(constant_liar=True),
                pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS),
            )
        except Exception as error:  # what SQLAlchemy and Alembic stumble over in a foreign file
            raise CheckpointError(
                f"{path}: no study of station-train search, or a damaged one: {str(error).splitlines()[0]}; "
                "take another --out"
            ) from error
        try:
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def begin(study: optuna.Study, search: Search, fingerprint: str) -> None:
    """Note in a new study what it searches, and let it begin with the default settings; check that an old one is alike.

    Raises:
        CheckpointError: the study is of other images or other settings.
    """
    base, searched = search.base.model_dump(mode="json", by_alias=True), list(search.searched)
    if not study.user_attrs:
        for name, value in {"fingerprint": fingerprint, "base": base, "searched": searched}.items():
            study.set_user_attr(name, value)
        study.enqueue_trial({name: getattr(search.base, name) for name in search.searched})
        return
    known = study.user_attrs
    if known.get("fingerprint") != fingerprint:
        raise CheckpointError(f"{search.out} searches on other images than {search.data}; take another --out")
    changed = [name for name, value in base.items() if known["base"].get(name) != value]
    if changed or known["searched"] != searched:
        what = ", ".join(f"{name} = {known['base'].get(name)}" for name in changed) or "other settings to search"
        raise CheckpointError(f"{search.out} was started with {what}; give the same options, or take another --out")


def tried(study: optuna.Study) -> list[Tried]:
    """All trials, but those that were interrupted, in the order in which they began."""
    return [_tried(trial) for trial in study.get_trials(deepcopy=False) if _counts(trial)]


def best_of(trials: Sequence[Tried]) -> Tried | None:
    """The finished trial with the highest auROC, the first of several; None: none has finished."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.auroc is not None]
    return max(finished, key=lambda trial: (trial.auroc, -trial.number), default=None)


def run_search(
    search: Search,
    n_trials: int,
    n_workers: int,
    on_tick: Callable[[list[Tried], float], None],
) -> tuple[list[Tried], bool, list[int]]:
    """Let workers try until the study has ``n_trials`` trials, or a signal comes.

    Args:
        search: what to search; ``begin`` was called for it.
        n_trials: how many in all, those of earlier sittings included.
        n_workers: processes.
        on_tick: told twice a second the trials, and how many trials' worth is done of those that run here.

    Returns:
        The trials; whether a signal ended the search; exit codes of workers that died.
    """
    context = get_context("spawn")  # a forked child could not use the GPU
    stop, shares = context.Event(), context.Array("d", n_workers)
    processes = [
        context.Process(target=work, args=(search, n_trials, i, os.getpid(), stop, shares)) for i in range(n_workers)
    ]
    with open_study(search.out) as study, Interrupted().listening() as interrupted:
        for process in processes:
            process.start()
        asked_at = float("inf")
        try:
            while alive := [process for process in processes if process.is_alive()]:
                connection.wait([process.sentinel for process in alive], timeout=0.5)
                if interrupted and not stop.is_set():
                    asked_at = time.monotonic()
                    stop.set()
                if time.monotonic() - asked_at > _PATIENCE:
                    for process in alive:
                        process.kill()
                on_tick(tried(study), float(sum(shares[:])))
        finally:
            stop.set()  # else they would go on after an error of ours
        for process in processes:
            if process.exitcode:
                _give_up_trials_of(study, process.pid)
        _tidy(study, search.out)
        codes = [process.exitcode for process in processes if process.exitcode]
        return tried(study), bool(interrupted), codes


def work(
    search: Search,
    n_trials: int,
    index: int,
    parent: int,
    stop: Event,
    shares: "SynchronizedArray[float]",
) -> None:
    """Try until the study has ``n_trials`` trials; the body of a worker process.

    Args:
        search: what to search.
        n_trials: see above.
        index: which worker this is.
        parent: process whose end is the end of this one, too.
        stop: set when it shall end.
        shares: share of its trial that each worker has done, for the progress bar.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach all processes of a terminal; only the first decides
        signal.signal(number, signal.SIG_IGN)
    # Their words would tear the first one's progress bar.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.WARNING)
    torch.set_num_threads(search.threads)
    keep_freed_memory()
    *_, images = search.load()
    assert isinstance(images, TrainingImages)  # noqa: S101 - the last item always is
    validator = Validator(images, search.base)

    def on_step(share: float) -> None:
        shares[index] = share
        if stop.is_set() or os.getppid() != parent:
            raise KeyboardInterrupt

    with open_study(search.out) as study, (search.out / f".{STUDY_FILE}.lock").open("w") as turn:

        def objective(trial: Trial) -> float:
            fcntl.flock(turn, fcntl.LOCK_UN)
            return try_settings(trial, search, images, validator, on_step)

        while True:
            fcntl.flock(turn, fcntl.LOCK_EX)  # until the trial has begun, and so is counted
            try:
                on_step(0.0)
                if sum(map(_counts, study.get_trials(deepcopy=False))) >= n_trials:
                    return
                study.optimize(objective, n_trials=1, catch=FAILURES)
            except KeyboardInterrupt:
                return
            finally:
                fcntl.flock(turn, fcntl.LOCK_UN)
                _tidy(study, search.out)


def try_settings(
    trial: Trial,
    search: Search,
    images: TrainingImages,
    validator: Validator,
    on_step: Callable[[float], None],
) -> float:
    """Train with settings that ``trial`` suggests; the image auROC on planted defects in the end.

    Its run stays in its folder below ``trials/``, as ``station-train export`` takes it.

    Raises:
        TrialPruned: after one of its validations it was worse than half of the trials before it.
        DivergedError, DataError: training or scores became NaN.
        KeyboardInterrupt: a signal came.
    """
    trial.set_user_attr("process", os.getpid())
    settings = {name: SPACE[name](trial, name) for name in search.searched}
    run = _run_of(search.out, trial.number)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    try:
        config = search.config({name: rounded(value) for name, value in settings.items()})
        fabric = Fabric(accelerator="auto", devices=1, precision=choose_precision(search.precision, config))
        trainer = Trainer(config, images, fabric)
        for check in range(1, CHECKS + 1):
            _train_until(check / CHECKS, trainer, run, on_step)
            validation = validator(load_trained(run), fabric.device, lambda: on_step(check / CHECKS))  # noqa: B023
            trial.set_user_attr("validation", asdict(validation))
            trial.set_user_attr("seconds", round(trainer.seconds, 1))
            auroc = round(validation.image_auroc, 6)  # the first of equals is the best, whatever was rounded how
            trial.report(auroc, check)
            if check < CHECKS and trial.should_prune():
                raise optuna.TrialPruned
    except FAILURES as error:
        trial.set_user_attr("failure", str(error))
        raise
    return auroc


class _CheckDue(Exception):  # noqa: N818 - not an error
    """A share of the budget is spent."""


def _train_until(share: float, trainer: Trainer, run: Path, on_step: Callable[[float], None]) -> None:
    """Train until ``share`` of the budget is spent, and leave a checkpoint. The time of validations is not of it."""

    def look(progress: Progress) -> None:
        on_step(progress.fraction)
        if progress.fraction >= share:
            raise _CheckDue

    try:
        if not train(trainer, run, on_step=look):
            raise KeyboardInterrupt
    except _CheckDue:
        checkpoint.save(run / checkpoint.CHECKPOINT_FILE, trainer.state())


def rounded(value: Any) -> Any:  # noqa: ANN401 - whatever a setting is
    """A setting as it is used: three digits, which is all that anybody wants to read or type."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _run_of(out: Path, number: int) -> Path:
    return out / TRIALS_FOLDER / f"{number:04d}"


def _tidy(study: optuna.Study, out: Path) -> None:
    """Delete all runs but the best one and those under way: a hundred of them take gigabytes."""
    trials = study.get_trials(deepcopy=False)
    best = best_of([_tried(trial) for trial in trials])
    for trial in trials:
        if trial.state in _STATES and (best is None or trial.number != best.number):
            shutil.rmtree(_run_of(out, trial.number), ignore_errors=True)


def _counts(trial: FrozenTrial) -> bool:
    """Whether it takes one of the places: not if it has yet to begin, was interrupted, or its process was killed."""
    if trial.state == TrialState.FAIL:
        return "failure" in trial.user_attrs
    return trial.state != TrialState.WAITING


def _tried(trial: FrozenTrial) -> Tried:
    last = max(trial.intermediate_values, default=None)
    return Tried(
        number=trial.number,
        state=_STATES.get(trial.state, "running"),
        auroc=None if last is None else trial.intermediate_values[last],
        settings={name: rounded(value) for name, value in trial.params.items()},
        seconds=trial.user_attrs.get("seconds", 0.0),
        validation=trial.user_attrs.get("validation"),
        failure=trial.user_attrs.get("failure"),
    )


def _give_up_trials_of(study: optuna.Study, process: int | None) -> None:
    """Close the trial of a process that died."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("process") == process:
            study.tell(trial.number, state=TrialState.FAIL)
