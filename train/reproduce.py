"""Every category of MVTec AD trained, exported and evaluated, each by the commands that a user would give.

Every run has a folder of its own, so what was reached is on disk: a finished run has a result, an unfinished one the
checkpoint of ``fit``.
"""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.bundle import read_bundle
from engines.files import write_whole
from train.data import find_training_images
from train.errors import DataError
from train.labelled import find_labelled_images
from train.paper_tables import CATEGORIES, MEANS, OBJECTS, ROTATED, PublishedTable

START_FILE = "reproduce.json"
RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
RUN, BUNDLE, EVALUATION = "run", "bundle", "evaluation"

_TAIL = 60  # lines of a failed command that are looked through for its error
_EXIT_USAGE = 2
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CommandFailedError(Exception):
    """A command of ``station-train`` failed; the message is its own."""


class FitOptionsError(Exception):
    """``fit`` does not take the options it was given, so no other category would fare better."""


class StoppedError(Exception):
    """A signal came; what was reached is on disk."""


class Start(BaseModel):
    """How a reproduction was started; what goes on in its folder must be the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    fit_options: list[str]


class Result(BaseModel):
    """What one run reached.

    Attributes:
        category: MVTec AD's name of it.
        seed: of the training.
        image_auroc: over all test images.
        balanced_accuracy: its maximum over thresholds, as in the paper.
        pixel_auroc: None where there is no mask.
        au_pro: likewise.
        steps: of the training.
        seconds: of the training.
        colour: of the frames, rgb or gray.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    seed: int
    image_auroc: float
    balanced_accuracy: float
    pixel_auroc: float | None
    au_pro: float | None
    steps: int
    seconds: float
    colour: str


@dataclass(frozen=True)
class Job:
    """One category with one seed.

    Attributes:
        category: MVTec AD's name of it.
        seed: of the training.
        data: the category's folder.
        folder: of what is made of it.
    """

    category: str
    seed: int
    data: Path
    folder: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.category}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What the commands printed."""
        return self.folder / LOG_FILE

    def result(self) -> Result | None:
        """What was reached, if it is finished."""
        path = self.folder / RESULT_FILE
        return _read_result(path) if path.is_file() else None


def find_categories(root: Path, only: Sequence[str] = ()) -> dict[str, Path]:
    """Categories of MVTec AD below ``root``, by name, in the paper's order; or the one that ``root`` itself is.

    Args:
        root: what MVTec's archive holds, or one category of it.
        only: take these alone; names the category where ``root`` is one and its folder has another name.

    Raises:
        DataError: none is there, or not all of ``only``; the message shows the layout.
    """
    if (root / "train" / "good").is_dir():
        return _one_category(root, only)
    there = {name: root / name for name in CATEGORIES if (root / name).is_dir()}
    if not there:
        raise DataError(f"{root}: {_layout(root)}")
    missing = [name for name in only if name not in there]
    if missing:
        raise DataError(f"{root}: no folder {', '.join(missing)} there, only {', '.join(there)}; see --only")
    return {name: path for name, path in there.items() if not only or name in only}


def _one_category(root: Path, only: Sequence[str]) -> dict[str, Path]:
    name = root.resolve().name
    if name in CATEGORIES and only in {(), (name,)}:
        return {name: root}
    if name not in CATEGORIES and len(only) == 1:
        return {only[0]: root}
    known = name if name in CATEGORIES else "NAME"
    raise DataError(
        f"{root}: holds train/good/, so it is one category and not the folder of all; say which with --only {known}, "
        "or give the folder above it"
    )


def _layout(root: Path) -> str:
    """What is wrong with a root that holds no category."""
    if not root.is_dir():
        return "no such folder"
    inner = [path for path in root.iterdir() if path.is_dir() and any((path / name).is_dir() for name in CATEGORIES)]
    if inner:
        return f"no category of MVTec AD there, but in {inner[0]}; did you mean that?"
    return (
        "no category of MVTec AD there. Unpacked, the data set looks like this:\n"
        "  carpet/train/good/000.png …\n"
        "  carpet/test/good/000.png …\n"
        "  carpet/test/hole/000.png … and so on for every defect\n"
        "  carpet/ground_truth/hole/000_mask.png …\n"
        f"  and the same in {', '.join(CATEGORIES[1:])}\n"
        "Some of the categories are enough. Give the folder that holds them as --mvtec."
    )


def start(out: Path, given: Start) -> None:
    """Note in ``out`` how the reproduction was started, or see that it goes on as it was.

    Raises:
        DataError: it was started otherwise, and something has been trained since.
    """
    path = out / START_FILE
    if path.is_file() and any(out.glob(f"*/seed*/{RUN}/*.pt")):
        try:
            before = Start.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{path}: not written by `station-train reproduce`; give another --out") from error
        if before != given:
            options = shlex.join(before.fit_options) or "no option of fit"
            raise DataError(
                f"{out}: was started with --mvtec {before.data} and {options}; what it holds would not be comparable. "
                "Give the same, or another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, given.model_dump_json(indent=2).encode() + b"\n")


class Runner:
    """Runs commands of ``station-train``, each a process of its own (docs/decisions/0063-reproduce.md).

    SIGINT, SIGTERM and SIGHUP end the command that runs: it is sent SIGTERM, on which ``fit`` saves.
    """

    def __init__(self) -> None:
        self._stopped = False
        self._process: subprocess.Popen[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the ``with`` block; afterwards they do again what they did before."""
        before = {number: signal.signal(number, self._stop) for number in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, arguments: Sequence[str], log: Path, on_line: Callable[[str], None]) -> None:
        """Run one command to its end.

        Args:
            arguments: of ``station-train``.
            log: file that all it prints is added to.
            on_line: called with each line.

        Raises:
            StoppedError: a signal came.
            FitOptionsError: it does not take its options.
            CommandFailedError: it failed otherwise.
        """
        self._raise_if_stopped()
        tail: deque[str] = deque(maxlen=_TAIL)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"station-train {shlex.join(arguments)}\n")
            file.flush()
            with subprocess.Popen(
                [sys.executable, "-m", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # FORCE_COLOR would make it draw bars into the log, at ten a second.
                env=os.environ | {"PYTHONUNBUFFERED": "1", "FORCE_COLOR": ""},
                # Out of reach of the terminal's Ctrl-C, which we pass on, once and as SIGTERM.
                start_new_session=True,
            ) as process:
                self._process = process
                try:
                    self._raise_if_stopped()  # the signal came while it was starting
                    for line in process.stdout or ():
                        file.write(line)
                        file.flush()
                        if line.strip():
                            tail.append(line.rstrip())
                            on_line(line.strip())
                except BaseException:
                    self._end()
                    raise
            self._process = None
        self._raise_if_stopped()
        if process.returncode == _EXIT_USAGE:
            raise FitOptionsError(" ".join(line.strip("│ ") for line in tail if line.startswith("│")))
        if process.returncode:
            raise CommandFailedError(f"{arguments[0]} {_reason(process.returncode, list(tail))}")

    def _raise_if_stopped(self) -> None:
        if self._stopped:
            raise StoppedError

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)  # all processes of fit --devices


def _reason(code: int, tail: list[str]) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        more = "; the system does that where memory runs out" if name == "SIGKILL" else ""
        return f"was ended by {name}{more}"
    at = next((i for i, line in enumerate(tail) if line.startswith("error:")), None)
    words = tail[-1:] if at is None else [line for line in tail[at:] if not line.startswith("see docs/")]
    return "failed: " + "\n".join(words).removeprefix("error: ")


def reproduce(job: Job, fit_options: Sequence[str], runner: Runner, on_line: Callable[[str], None]) -> Result:
    """Train, export and evaluate; goes on from the checkpoint that is there.

    Args:
        job: what.
        fit_options: for ``station-train fit``, after those that the category asks for.
        runner: listening.
        on_line: called with what is being done.

    Raises:
        DataError: the category's folder is not as it should be; known before it is trained on.
        StoppedError: a signal came.
        FitOptionsError: ``fit`` does not take ``fit_options``.
        CommandFailedError: a command failed.
    """
    find_training_images(job.data)
    find_labelled_images(job.data)
    job.folder.mkdir(parents=True, exist_ok=True)
    run, bundle, evaluation = job.folder / RUN, job.folder / BUNDLE, job.folder / EVALUATION
    for command in (
        ["fit", "--data", job.data, "--out", run, "--seed", job.seed, *category_options(job.category), *fit_options],
        ["export", "--run", run, "--out", bundle, "--name", f"{job.category}-seed{job.seed}"],
        ["evaluate", "--bundle", bundle, "--data", job.data, "--out", evaluation],
    ):
        doing = str(command[0])
        on_line(doing)
        runner.run([str(word) for word in command], job.log, partial(_tell, on_line, doing))
    description = read_bundle(bundle).manifest
    result = Result(
        category=job.category,
        seed=job.seed,
        steps=description.training.steps,
        seconds=description.training.seconds,
        colour=description.preprocessing.colour,
        **{
            name: value
            for name, value in json.loads((evaluation / "report.json").read_text(encoding="utf-8")).items()
            if name in {"image_auroc", "balanced_accuracy", "pixel_auroc", "au_pro"}
        },
    )
    write_whole(job.folder / RESULT_FILE, result.model_dump_json(indent=2).encode() + b"\n")
    return result


def _tell(on_line: Callable[[str], None], doing: str, line: str) -> None:
    on_line(f"{doing}: {line}")


def category_options(category: str) -> list[str]:
    """What ``fit`` is told of a category (paper, section V.B); gray stays gray by itself."""
    if category not in OBJECTS:
        return ["--category", "texture", "--frame-size", "512x512"]
    # The presets 'paper' and 'reference' turn what they train on; of objects the paper turns four.
    return ["--category", "object", "--frame-size", "128x128", "--rotate", "-45:45" if category in ROTATED else "0:0"]


def read_results(out: Path) -> list[Result]:
    """Everything that is finished in the folder of a reproduction, in the paper's order.

    Raises:
        DataError: one of the files cannot be read.
    """
    results = [_read_result(path) for path in out.glob(f"*/seed*/{RESULT_FILE}")]
    return sorted(results, key=lambda result: (CATEGORIES.index(result.category), result.seed))


def _read_result(path: Path) -> Result:
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: damaged; remove it, and its category is evaluated anew") from error


@dataclass(frozen=True)
class Ours:
    """A figure over several seeds, 0 to 1."""

    mean: float
    worst: float
    seeds: int


def summarise(results: Sequence[Result], table: PublishedTable) -> dict[str, Ours]:
    """Our figures for the columns of a published table.

    A mean over categories is there only where some seed has all of them: that over others would not be the paper's.
    """
    figures: dict[str, dict[int, float]] = {}
    for result in results:
        figures.setdefault(result.category, {})[result.seed] = getattr(result, table.metric)
    for name, members in MEANS.items():
        by_seed = [figures.get(category, {}) for category in members]
        seeds = set.intersection(*map(set, by_seed))
        figures[name] = {seed: statistics.fmean(known[seed] for known in by_seed) for seed in sorted(seeds)}
    return {
        name: Ours(statistics.fmean(values.values()), min(values.values()), len(values))
        for name, values in figures.items()
        if values
    }
