"""``station-train``: one command each in train/commands, listed here in the order a user meets them."""

import sys
from importlib import metadata
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.markup import escape

from engines.errors import EngineError, ImageError
from engines.help import page_of
from train.commands import evaluate, export, fit, reproduce, search
from train.errors import CheckpointError, DataError, DivergedError

EXIT_ERROR = 1

# What a user can cause and mend: told in one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (CheckpointError, DataError, DivergedError, EngineError, ImageError)

app = typer.Typer(
    help="Trains a CBiGAN on defect-free images, evaluates it and exports it for the station.\n\n"
    "A user's path: **fit** on a folder of good images, **export** the run as a bundle, and, where images of "
    "defects are at hand, **evaluate** it.",
    epilog="Example, from good images to a bundle:\n\n"
    "`station-train fit --data images/good --out runs/leather --minutes 15`\n\n"
    "`station-train export --run runs/leather --out bundles/leather`\n\n"
    "`station-train COMMAND --help` says more about each.",
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"station-train {metadata.version('cbigan-station')}")
        raise typer.Exit
    # Standard output is for results, such as those of evaluate --json.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


app.command("fit")(fit.fit)
app.command("export")(export.export)
app.command("evaluate")(evaluate.evaluate)
app.command("search")(search.search)
app.command("reproduce")(reproduce.reproduce)


def main() -> None:
    """Run the command line; never a traceback for what a user can mend."""
    try:
        app(prog_name="station-train")
    except USER_ERRORS as error:
        page = page_of(error)
        more = f"\n[dim]see {page}[/]" if page else ""
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}{more}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_ERROR)
