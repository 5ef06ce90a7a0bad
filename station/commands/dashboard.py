"""``station dashboard``: the operator's page."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from station import logs
from station.dashboard import DashboardError
from station.settings import DashboardSettings, SettingsError, load_dashboard_settings, with_options

_EXTRA = "pip install 'cbigan-station[dashboard]'"


def dashboard(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings file, TOML: [mqtt], [dashboard] and [log] are used; a station's own will do. Without it: "
            "a broker on this machine.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Address to listen on, instead of dashboard.host.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Port, instead of dashboard.port; 0: any free one.", show_default=False),
    ] = None,
    set_password: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Ask for this user's password, write its hash into dashboard.users_file, and end. From a pipe the "
            "password is the first line.",
            show_default=False,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the frames of judged alerts into DIR/good (false alarms) and DIR/defect (confirmed), and "
            "end. The dashboard may be running.",
            show_default=False,
        ),
    ] = None,
    station: Annotated[
        str | None,
        typer.Option(metavar="SITE/LINE/NAME", help="With --export: this station's alone.", show_default=False),
    ] = None,
) -> None:
    """Show all stations of a broker in the browser, until Ctrl-C.

    States, scores, pictures, alerts; users named in [bold]dashboard.operators[/] may also pause, set thresholds and
    judge alerts. It needs the broker only, and keeps alerts and pictures in its state folder. By default it listens on
    this machine alone and shows without letting anybody act; docs/dashboard.md tells how to let people in.

    Example: [cyan]station dashboard --config station.toml[/]

    [cyan]station dashboard --config station.toml --set-password ann[/]

    [cyan]station dashboard --config station.toml --export feedback[/]

    [cyan]station calibrate --config station.toml --good feedback/good --defect feedback/defect[/]
    """
    settings = load_dashboard_settings(config)
    section = with_options(settings.dashboard, host=host, port=port)
    settings = settings.model_copy(update={"dashboard": section})
    logs.set_up(settings.log)
    if export is not None:
        _export(settings, export, station)
    elif set_password is not None:
        _set_password(settings, set_password)
    else:
        _serve(settings)


def _serve(settings: DashboardSettings) -> None:
    try:
        from station.dashboard.server import serve  # noqa: PLC0415 - needs the extra
    except ImportError as error:
        raise _missing(error) from error
    serve(settings)


def _set_password(settings: DashboardSettings, user: str) -> None:
    try:
        from station.dashboard.access import Users, ask_password  # noqa: PLC0415 - needs the extra
    except ImportError as error:
        raise _missing(error) from error
    path = settings.dashboard.users_file
    if path is None:
        raise SettingsError("dashboard.users_file: missing; name the file that --set-password shall write to")
    Users(path).set(user, ask_password(user))
    acts = user in settings.dashboard.operators
    Console().print(
        f"{escape(str(path))}: password of {escape(user)} set; {'may act' if acts else 'may look, not act'} "
        f"(dashboard.operators {'names' if acts else 'does not name'} it)",
        highlight=False,
        soft_wrap=True,
    )


def _export(settings: DashboardSettings, folder: Path, station: str | None) -> None:
    from station.dashboard.archive import DATABASE, Archive  # noqa: PLC0415 - as the others
    from station.dashboard.export import export_folder  # noqa: PLC0415

    section = settings.dashboard
    if not (section.state_folder / DATABASE).exists():
        raise DashboardError(f"{section.state_folder}: no dashboard has worked with this state folder yet")
    archive = Archive(section.state_folder, section.keep_mib, section.keep_days)
    try:
        exported = export_folder(archive, folder, station)
    finally:
        archive.close()
    missing = exported.without_frame
    Console().print(
        f"{escape(str(folder))}: {exported.good} false alarms in good/, {exported.defect} confirmed in defect/"
        + (f"; {missing} without a frame (alerts.frame of the station)" if missing else ""),
        highlight=False,
        soft_wrap=True,
    )


def _missing(error: ImportError) -> DashboardError:
    return DashboardError(f"the dashboard needs {error.name}, which is not installed: {_EXTRA}")
