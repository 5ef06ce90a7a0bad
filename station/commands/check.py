"""``station check``: proves a set-up before it is left alone."""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from engines.bundle import Bundle, read_bundle
from engines.engine import Engine
from engines.errors import EngineError
from engines.help import explained
from engines.judging import Judging
from engines.opening import open_engine
from station import logs
from station.calibration import CalibrationError
from station.camera import CameraError, redact_url
from station.commands.frames import first_frame
from station.connection import Connection
from station.frames import Frame
from station.inspection import Inspector
from station.settings import LogSettings, Settings, load_settings
from station.verdict import Verdict, make_tiler, read_verdict

BROKER_SECONDS = 10.0

_Found = TypeVar("_Found")


class _BrokerError(Exception):
    """The log-in failed; says why."""


_REFUSALS = (EngineError, CalibrationError, CameraError, _BrokerError, ValueError)


class _Report:
    """Prints one line a check."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.failed = False

    def attempt(self, name: str, step: Callable[[], tuple[_Found, str]]) -> _Found | None:
        """Try a step, that gives what it found and words for it; None where it refused."""
        try:
            with self._console.status(f"{name} …"):
                found, words = step()
        except _REFUSALS as error:
            self.failed = True
            self._line("[red]✗[/]", name, explained(error).replace("\n", f"\n{' ' * 14}"))
            return None
        self._line("[green]✓[/]", name, words)
        return found

    def _line(self, mark: str, name: str, words: str) -> None:
        self._console.print(f"{mark} [bold]{name:<12}[/]{escape(words)}", highlight=False, soft_wrap=True)


def check(
    config: Annotated[Path, typer.Option(metavar="FILE", help="Settings file, TOML.", show_default=False)],
) -> None:
    """Prove a set-up: settings, bundle, engine, calibration, a camera frame, the broker's log-in.

    One line each, with the way out where something is wrong. Publishes nothing. Exit code 0: all is well;
    1: something is not; 78: the settings cannot be used.

    Example: [cyan]station check --config station.toml[/]
    """
    logs.set_up(LogSettings(level="error"))
    settings = load_settings(config)
    # An id of its own: with the daemon's, the broker would throw a running daemon out.
    connection = Connection(settings.mqtt, f"{settings.client_id}-check-{secrets.token_hex(3)}")
    report = _Report(Console())
    report.attempt("settings", lambda: (settings, f"{config}: {settings.topic_prefix}"))
    bundle = report.attempt("bundle", lambda: _bundle(settings))
    frame = report.attempt("camera", lambda: _frame(settings))
    if bundle is not None:
        verdict = report.attempt("calibration", lambda: _verdict(settings, bundle))
        engine = report.attempt("engine", lambda: _engine(settings, bundle))
        if engine is not None:
            if verdict is not None and frame is not None:
                report.attempt("inspection", lambda: _inspection(settings, bundle, engine, verdict, frame))
            engine.close()
    report.attempt("broker", lambda: _broker(settings, connection))
    raise typer.Exit(int(report.failed))


def _bundle(settings: Settings) -> tuple[Bundle, str]:
    bundle = read_bundle(settings.bundle)
    manifest = bundle.manifest
    return bundle, f"{manifest.name} ({manifest.category}), sha256 {bundle.digest[:12]}…, all files intact"


def _frame(settings: Settings) -> tuple[Frame, str]:
    frame = first_frame(settings.camera)
    height, width = frame.image.shape[:2]
    return frame, f"{redact_url(settings.camera.url)}: {width} x {height} pixels"


def _verdict(settings: Settings, bundle: Bundle) -> tuple[Verdict, str]:
    verdict = read_verdict(settings, bundle)
    source = "judge.threshold" if settings.judge.threshold is not None else str(settings.calibration)
    made = f"calibrated {verdict.calibrated_at:%Y-%m-%d %H:%M} UTC" if verdict.calibrated_at else "not calibrated"
    return verdict, f"threshold {verdict.threshold:.5g} from {source}; {made}"


def _engine(settings: Settings, bundle: Bundle) -> tuple[Engine, str]:
    engine = open_engine(bundle, settings.engine)
    info = engine.info
    return engine, (
        f"{info.backend} {info.backend_version} on {info.device}, {info.precision}: reproduces the self-test"
    )


def _inspection(
    settings: Settings, bundle: Bundle, engine: Engine, verdict: Verdict, frame: Frame
) -> tuple[float, str]:
    inspector = Inspector(engine, make_tiler(settings, bundle), Judging.of(bundle.manifest), settings.judge)
    inspection = inspector.inspect(frame.image)
    height, width = frame.image.shape[:2]
    if verdict.calibration is not None:
        view = verdict.calibration.camera
        if (view.frame_height, view.frame_width) != (height, width):
            raise CalibrationError(
                f"the calibration was made on frames of {view.frame_width} x {view.frame_height} pixels, the camera "
                f"gives {width} x {height}; run `station calibrate` again"
            )
    return inspection.score, (
        f"{inspection.grid.n} patches, score {inspection.score:.4g} of {verdict.threshold:.4g}, "
        f"{sum(inspection.ms.values()):.0f} ms"
    )


def _broker(settings: Settings, connection: Connection) -> tuple[str, str]:
    connection.start()
    end = time.monotonic() + BROKER_SECONDS
    while not connection.wait(0.1) and not connection.refused and time.monotonic() < end:
        pass
    connected = connection.connected
    connection.stop(1.0)
    if not connected:
        raise _BrokerError(connection.problem or f"{connection.where}: no answer")
    who = f"as {settings.mqtt.username!r}" if settings.mqtt.username else "without a user name"
    tls = "with TLS" if settings.mqtt.tls else "without TLS"
    return connection.where, f"{connection.where}: logged in {who}, MQTT {connection.protocol}, {tls}"
