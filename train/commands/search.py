"""``station-train search``."""

# ruff: noqa: PLC0415 - torch and Optuna take seconds to load, for which neither --help nor Tab shall wait

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from engines.files import write_whole
from train.commands import fit
from train.data import TrainingImages
from train.errors import DataError

if TYPE_CHECKING:
    from train.search import Search, Tried

RESULTS_FILE, PAGE_FILE = "search.json", "search.html"
DEFAULT_TRIALS, DEFAULT_MINUTES = 30, 3.0
_OF_A_RUN = {"out": None, "data": None, "devices": 1, "threads": 0, "steps": None, "minutes": None, "protocol": None}
_NAMES = {"preset_name": "preset", "lambda_": "lambda"}  # of fit's parameters, where FitConfig calls them otherwise

console = Console(stderr=True)


def search(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of defect-free images, or a data set in MVTec AD layout (train/good/ is used).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the search; goes on with the search that is there, or joins one under way.",
            show_default=False,
        ),
    ],
    trials: Annotated[
        int,
        typer.Option("--trials", metavar="N", min=1, help="How many settings to try, those already tried included."),
    ] = DEFAULT_TRIALS,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", metavar="MINUTES", help=f"Training of one trial, minutes. Default: {DEFAULT_MINUTES:g} …"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", help="… or steps. Minutes favour what is fast, steps what is large."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Trials to run side by side, each in its own process.")
    ] = 1,
    threads: Annotated[
        int,
        typer.Option("--threads", metavar="N", min=0, help="CPU threads of a worker; 0: the cores, shared out evenly."),
    ] = 0,
    fit_options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- FIT OPTIONS]",
            help="Options of `fit` that hold for every trial. What they set is not searched.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Search for good settings: many short trainings, judged by defects planted into held-out good images.

    No test image is looked at. The first trial has the default settings; trials that fall behind are cut short. Ctrl-C
    keeps what has finished. The best settings are printed as a `fit` command; DIR/search.html shows all trials.

    Example: `station-train search --data images/good --out searches/leather --trials 30 --minutes 3 -- --colour gray`
    """
    arguments = fit_options or []
    given, how = _parse(arguments)
    if steps is None and minutes is None:
        minutes = DEFAULT_MINUTES
    budget = {name: value for name, value in (("steps", steps), ("minutes", minutes)) if value is not None}
    base = fit.new_config(given | budget)
    try:
        from train import search as searching
    except ImportError as error:
        raise DataError(
            f"a search needs {error.name}, which is not installed: pip install 'cbigan-station[search]'"
        ) from error

    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    job = searching.Search(data, out, base, searching.to_search(base, list(given)), threads=threads, **how)
    if not job.searched:
        raise typer.BadParameter("everything that could be searched is given", param_hint="[-- FIT OPTIONS]")
    images = _load(job)
    with searching.open_study(out) as study:
        searching.begin(study, job, images.fingerprint)
        known = searching.tried(study)
    del images  # each worker has its own
    command = ["station-train", "fit", "--data", str(data), "--out", f"runs/{out.resolve().name}", *arguments]
    results = _Results(out, str(data), f"{steps:,} steps" if steps else f"{minutes:g} minutes", command)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("searching", total=trials)
        reported = {trial.number for trial in known if trial.state != "running"}

        def on_tick(tried: "list[Tried]", under_way: float) -> None:
            ended = [trial for trial in tried if trial.state != "running"]
            best = searching.best_of(ended)
            done = min(trials, round(len(ended) + under_way, 1))
            progress.update(task, completed=done, description=f"best {best.auroc:.4f}" if best else "searching")
            for trial in ended:
                if trial.number not in reported:
                    reported.add(trial.number)
                    _tell(trial, is_best=best is not None and trial.number == best.number)
                    results.write(tried)

        tried, interrupted, died = searching.run_search(job, trials, workers, on_tick)
        on_tick(tried, 0.0)
    for code in died:
        console.print(f"[yellow]a worker process died[/] with exit code {code}; was memory short? Try fewer --workers")
    results.finish(tried, interrupted=interrupted)


class _Results:
    """What a search leaves: search.json and search.html, written after every trial, and the last words."""

    def __init__(self, out: Path, data: str, budget: str, command: list[str]) -> None:
        """Remember what the page tells.

        Args:
            out: folder of the search.
            data: folder of the images.
            budget: of a trial, in words.
            command: trains, but for the searched settings.
        """
        self._out = out
        self._data = data
        self._budget = budget
        self._command = command

    def write(self, tried: "list[Tried]") -> str:
        """Write both files; the command that trains with the best settings, "" if there are none."""
        from train import search_page
        from train.search import best_of

        best = best_of(tried)
        line = shlex.join([*self._command, *_options(best.settings)]) if best else ""
        found = {
            "best": asdict(best) if best else None,
            "fit": line,
            "trials": [asdict(trial) for trial in tried],
        }
        write_whole(self._out / RESULTS_FILE, json.dumps(found, indent=1).encode())
        page = search_page.render(tried, data=self._data, budget=self._budget, command=line)
        write_whole(self._out / PAGE_FILE, page.encode())
        return line

    def finish(self, tried: "list[Tried]", *, interrupted: bool) -> None:
        """Say what was found, and how to go on; ends the program after an interruption.

        Raises:
            DataError: nothing was found, though nobody stopped the search.
        """
        from train.search import best_of

        line = self.write(tried)
        best = best_of(tried)
        elsewhere = sum(trial.state == "running" for trial in tried)
        if elsewhere:
            console.print(f"{elsewhere} more under way in another search that has joined this one", highlight=False)
        if best is not None:
            console.print(
                f"[green]best[/]: trial {best.number} of {len(tried)}, {best.auroc:.4f} on planted defects; "
                f"{self._out / PAGE_FILE} shows all. Next:\n  {line}",
                highlight=False,
                soft_wrap=True,
            )
        elif not interrupted and not elsewhere:
            raise DataError(f"no trial finished; {self._out / PAGE_FILE} says why each failed")
        if interrupted:
            again = shlex.join(["station-train", *sys.argv[1:]])
            console.print(f"stopped; what has finished is kept. To go on:\n  {again}", highlight=False, soft_wrap=True)
            sys.exit(fit.EXIT_INTERRUPTED)


def _parse(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of fit: the settings among them, by their names in FitConfig, and how images and numbers are read.

    Raises:
        typer.BadParameter: one is wrong, or has no place in a search.
    """
    parsed = fit.parse_arguments(arguments, ".")
    for name, neutral in _OF_A_RUN.items():
        if parsed.pop(name) != neutral and name not in {"data", "out"}:
            way_out = "give it before --" if name in {"steps", "minutes", "threads"} else "a search has no use for it"
            raise typer.BadParameter(f"not for fit here: {way_out}", param_hint=f"--{name}")
    how = {name: parsed.pop(name) for name in ("precision", "skip_bad")}
    parsed |= {"frame_size": fit.parse_size(parsed["frame_size"]), "rotate": fit.parse_range(parsed["rotate"])}
    return {_NAMES.get(name, name): value for name, value in parsed.items() if value is not None}, how


def _options(settings: dict[str, Any]) -> list[str]:
    """Settings as options of fit."""
    options: list[str] = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        else:
            options += [f"--{option}", f"{value:g}"]
    return options


def _load(job: "Search") -> TrainingImages:
    columns = (SpinnerColumn(), TextColumn("reading images"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        for item in job.load():
            if isinstance(item, TrainingImages):
                images = item
            else:
                progress.update(task, completed=item)
    for line in images.skipped:
        console.print(f"[yellow]left out[/] {line}")
    console.print(
        f"{len(images.images)} {images.colour} images to train on, {len(images.held_out)} held out to judge by; "
        f"searching {', '.join(name.replace('_', ' ') for name in job.searched)}",
        highlight=False,
        soft_wrap=True,
    )
    return images


def _tell(trial: "Tried", *, is_best: bool) -> None:
    """A line for a trial that has ended."""
    if trial.failure is not None:
        console.print(f"trial {trial.number} [red]failed[/]: {trial.failure}", highlight=False)
        return
    score = "" if trial.auroc is None else f"{trial.auroc:.4f}"
    note = "  [green]best so far[/]" if is_best else "" if trial.state == "finished" else "  [dim]cut short[/]"
    name = "the default settings" if trial.number == 0 else " ".join(_options(trial.settings))
    console.print(f"trial {trial.number}  {score}{note}  [dim]{name}[/]", highlight=False, soft_wrap=True)
