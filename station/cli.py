"""``station``: one command each in station/commands, listed here in the order a user meets them.

To add a command: import its module, and register its function at its place below. The first line of the
function's docstring is what ``station --help`` says about it.
"""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from engines.errors import EngineError, ImageError
from engines.help import page_of
from station import __version__
from station.calibration import CalibrationError
from station.camera import CameraError
from station.commands import bench, calibrate, check, dashboard, demo, engine, inspect, run, watch
from station.dashboard import DashboardError
from station.demo.textures import DemoError
from station.files import OutputError
from station.settings import SettingsError
from station.state import StateError

EXIT_ERROR = 1
EXIT_SETTINGS = 78  # EX_CONFIG of sysexits.h; the systemd unit does not restart on it
EXIT_INTERRUPTED = 130

# What a user can cause and mend: told in one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (
    EngineError,
    ImageError,
    CameraError,
    CalibrationError,
    OutputError,
    DemoError,
    StateError,
    DashboardError,
)

TRY, SET_UP, OPERATE, MEASURE = "Try it", "Set up", "Operate", "Measure"

app = typer.Typer(
    help="Finds surface defects at the production line and reports them over MQTT.\n\n"
    "A user's path: see it work ([bold]demo[/]), try a trained bundle on image files ([bold]inspect[/]), "
    "set its threshold from good images ([bold]calibrate[/]), prove the set-up ([bold]check[/]), then leave it "
    "running ([bold]run[/]) and look on ([bold]watch[/]).",
    epilog="Example, from good images to a running station:\n\n"
    "[cyan]station calibrate --config station.toml --good images/good[/]\n\n"
    "[cyan]station check --config station.toml[/]\n\n"
    "[cyan]station run --config station.toml[/]\n\n"
    "`station COMMAND --help` says more about each.",
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"station {__version__}")
        raise typer.Exit


app.command("demo", rich_help_panel=TRY)(demo.demo)
app.command("inspect", rich_help_panel=TRY)(inspect.inspect)
app.command("calibrate", rich_help_panel=SET_UP)(calibrate.calibrate)
app.command("check", rich_help_panel=SET_UP)(check.check)
app.add_typer(engine.app, name="engine", rich_help_panel=SET_UP)
app.command("run", rich_help_panel=OPERATE)(run.run)
app.command("watch", rich_help_panel=OPERATE)(watch.watch)
app.command("dashboard", rich_help_panel=OPERATE)(dashboard.dashboard)
app.command("bench", rich_help_panel=MEASURE)(bench.bench)


def main() -> None:
    """Run the command line; never a traceback for what a user can mend."""
    try:
        app(prog_name="station")
    except SettingsError as error:
        _fail(error, EXIT_SETTINGS)
    except USER_ERRORS as error:
        _fail(error, EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(error: Exception, code: int) -> None:
    page = page_of(error)
    more = f"\n[dim]see {page}[/]" if page else ""
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}{more}", highlight=False, soft_wrap=True)
    sys.exit(code)
