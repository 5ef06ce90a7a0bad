"""``station-train reproduce``."""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from engines.errors import EngineError, ImageError
from engines.files import write_whole
from train.commands.fit import EXIT_INTERRUPTED, parse_arguments
from train.errors import DataError
from train.paper_tables import CATEGORIES, MEANS, TABLES, PublishedTable
from train.reproduce import (
    CommandFailedError,
    FitOptionsError,
    Job,
    Result,
    Runner,
    Start,
    StoppedError,
    find_categories,
    read_results,
    start,
)
from train.reproduce import reproduce as reproduce_one
from train.reproduction_page import Failure, Reproduction, as_json, as_markdown, as_page, caption, comparison, notes

TABLE_FILE = "table.md"
RESULTS_FILE = "results.json"
PAGE_FILE = "reproduction.html"

EXIT_FAILED = 1
DOING_CHARACTERS = 44  # of what a run is doing, beside the bar

LONG: dict[str, Any] = {"highlight": False, "soft_wrap": True}
PLAIN: dict[str, Any] = LONG | {"markup": False}

console = Console(stderr=True)


def reproduce(
    mvtec: Annotated[
        Path,
        typer.Option(
            "--mvtec",
            metavar="ROOT",
            help="Folder of MVTec AD with carpet/, grid/ and so on, all or some; or one category of it.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for runs, bundles, evaluations and the tables; goes on with what is there.",
            show_default=False,
        ),
    ],
    only: Annotated[
        str,
        typer.Option("--only", metavar="CATEGORY,…", help="Take these alone, such as grid,tile.", show_default="all"),
    ] = "",
    seeds: Annotated[
        str,
        typer.Option(
            "--seeds",
            metavar="N,…",
            help="Train every category with each of these seeds, such as 0,1,2; the tables then show the mean and the "
            "worst.",
        ),
    ] = "0",
    fit_options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- FIT OPTION",
            help="Options of `station-train fit` after two dashes, for every category: a budget such as --minutes 60, "
            "or --preset paper --protocol paper.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train and evaluate every category of MVTec AD, and lay the figures beside those of the paper.

    Textures are taken as textures, objects as objects, as in the paper; the budget is that of `fit`, if no other
    is given. Ctrl-C saves; the same command goes on, and finished categories are not done again. One that
    fails is reported and the others go on. The data set is MVTec's to give: CC BY-NC-SA 4.0, not for commercial use.

    Example: `station-train reproduce --mvtec mvtec_anomaly_detection --out reproduction`

    The authors' protocol, on a GPU: `station-train reproduce --mvtec mvtec_anomaly_detection --out as-published --seeds
    0,1,2 -- --preset paper --protocol paper`
    """
    options = fit_options or []
    given = parse_fit_options(options)
    chosen = tuple(_categories(only))
    numbers = _numbers(seeds)
    categories = find_categories(mvtec, chosen)
    start(out, Start(data=str(mvtec.resolve()), fit_options=options))
    jobs = [Job(name, seed, data, out / name / f"seed{seed}") for seed in numbers for name, data in categories.items()]
    todo = [job for job in jobs if job.result() is None]
    for line in _announcement(mvtec, categories, chosen, len(jobs), len(todo), given):
        console.print(line, **PLAIN)

    def tell(failures: Sequence[Failure]) -> Reproduction:
        """Everything finished so far; written, too, so that it can be looked at while the others go on."""
        told = Reproduction(
            read_results(out),
            failures,
            str(mvtec),
            options,
            given["preset_name"] or "default",
            given["protocol"] or "honest",
        )
        if told.results:
            for name, render in ((TABLE_FILE, as_markdown), (RESULTS_FILE, as_json), (PAGE_FILE, as_page)):
                write_whole(out / name, render(told).encode())
        return told

    try:
        told = tell(_run(todo, len(jobs), options, tell))
    except StoppedError:
        again = ["station-train", "reproduce", "--mvtec", str(mvtec), "--out", str(out)]
        again += ["--only", only] * bool(only) + ["--seeds", seeds] * (seeds != "0") + ["--", *options] * bool(options)
        console.print(f"stopped; what was reached is in {out}. To go on:\n  {shlex.join(again)}", **PLAIN)
        sys.exit(EXIT_INTERRUPTED)
    except FitOptionsError as error:
        raise typer.BadParameter(f"fit says: {error}", param_hint="-- FIT OPTIONS") from error
    if told.results:
        _show(told, out)
    if told.failures:
        console.print(f"{len(told.failures)} failed; the same command tries again, the finished ones stay", **PLAIN)
        sys.exit(EXIT_FAILED)


def parse_fit_options(options: Sequence[str]) -> dict[str, Any]:
    """What ``fit`` makes of the options, by its parameters; known before minutes of work.

    Raises:
        typer.BadParameter: one is ours to give, or has a value that it cannot have; likewise other usage errors.
    """
    place = "given by reproduce"
    parsed = parse_arguments(options, place)
    instead = {"data": "give --mvtec", "out": "give --out before the dashes", "seed": "give --seeds"}
    instead["category"] = "every category of MVTec AD has its own"
    for name, words in instead.items():
        if parsed[name] not in {None, Path(place)}:
            raise typer.BadParameter(f"--{name} is not for fit here; {words}", param_hint="-- FIT OPTIONS")
    return parsed


def _categories(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in CATEGORIES]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(CATEGORIES)}", param_hint="--only")
    return names


def _numbers(seeds: str) -> list[int]:
    words = [word.strip() for word in seeds.split(",")]
    if not all(word.isdecimal() for word in words):
        raise typer.BadParameter(f"{seeds!r} is no list of whole numbers, such as 0,1,2", param_hint="--seeds")
    return sorted({int(word) for word in words})


def _announcement(
    mvtec: Path, categories: dict[str, Path], chosen: Sequence[str], runs: int, todo: int, given: dict[str, Any]
) -> list[str]:
    """What is going to be done."""
    lines = []
    if list(categories.values()) == [mvtec]:
        lines.append(f"{mvtec} is one category, not the folder of all: taken as {', '.join(categories)}")
    elif not chosen and len(categories) < len(CATEGORIES):
        missing = ", ".join(name for name in CATEGORIES if name not in categories)
        lines.append(f"{len(categories)} of {len(CATEGORIES)} categories are there; without {missing}")
    line = f"{todo} of {runs} trainings to do"
    minutes = given["minutes"]
    if minutes and todo:
        line += f", at most {minutes:g} minutes each and {todo * minutes / 60:.2g} hours in all"
    return [*lines, line]


def _run(
    todo: Sequence[Job], runs: int, options: Sequence[str], tell: Callable[[Sequence[Failure]], object]
) -> list[Failure]:
    """Do one after the other; those that failed."""
    failures: list[Failure] = []
    runner = Runner()
    columns = (SpinnerColumn(), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns,
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with runner.listening(), bar:
        task = bar.add_task("", total=runs, completed=runs - len(todo))
        for job in todo:

            def on_line(line: str, name: str = job.name) -> None:
                bar.update(task, description=f"{name}, {shorten(line, DOING_CHARACTERS, placeholder=' …')}")

            try:
                result = reproduce_one(job, options, runner, on_line)
            except (CommandFailedError, DataError, EngineError, ImageError) as error:
                failures.append(Failure(job.category, job.seed, str(error)))
                more = f"\n  all that was printed: {job.log}" if job.log.is_file() else ""
                console.print(f"[red]failed[/] {job.name}: {escape(str(error))}{escape(more)}", **LONG)
            else:
                console.print(
                    f"[green]done[/] {job.name}: image auROC {result.image_auroc:.3f}, balanced accuracy "
                    f"{result.balanced_accuracy:.3f}, {result.steps:,} steps in {result.seconds / 60:.1f} minutes",
                    **LONG,
                )
            bar.advance(task)
            tell(failures)
    return failures


def _show(told: Reproduction, out: Path) -> None:
    """The tables on standard output, where they are on disk on standard error."""
    for published in TABLES:
        Console().print(make_table(told.results, published), "")
    for line in notes(told):
        console.print(f"[yellow]note[/] {escape(line)}", highlight=False)
    console.print(
        f"to look at: {out / PAGE_FILE}\nthe tables: {out / TABLE_FILE}\nall figures: {out / RESULTS_FILE}", **PLAIN
    )


def make_table(results: Sequence[Result], published: PublishedTable) -> Table:
    """Ours beside the published figures, for a terminal."""
    head, rows = comparison(results, published)
    # Broken where they may be, so that all of it fits into 80 columns.
    table = Table(title=caption(published), box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for heading in head[1:]:
        table.add_column(re.sub(r"[ -]", "\n", heading), justify="right", vertical="bottom", no_wrap=True)
    for name, *cells in rows:
        mean = name in MEANS
        table.add_row(name.replace(" of ", " of\n"), *cells, style="bold" if mean else None, end_section=mean)
    return table
