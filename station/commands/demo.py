"""``station demo``: all of it on one machine, with the real daemon in the middle."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import cv2
import typer
from pydantic_core import to_json
from rich.console import Console

from engines import manifest
from station import logs
from station.commands.child import last_lines, station_process
from station.demo.broker import HOST, Broker
from station.demo.sample_line import DEFAULT_FRAMES, DEFAULT_SEED, SampleLine
from station.demo.subscriber import PICTURES, Subscriber
from station.demo.tally import Tally
from station.demo.textures import DemoError, photograph
from station.demo.training_images import good_frames, write_training_images
from station.files import write_file
from station.settings import LogSettings

BUNDLE = Path(manifest.__file__).parent / "bundled" / "brick"
TOPICS = "station/v1/demo/line/station"
FALSE_ALARM_RATE = 1e-4  # per frame: three chances in a hundred of one false alarm in a run of 300
N_CALIBRATION = 200

_SETTINGS = """\
# Written by `station demo`: the settings of a station whose camera is the sample line.
bundle = {bundle}
calibration = "calibration.json"
state = "state"

[station]
site = "demo"

[camera]
url = "demo:brick?seed={seed}&frames={frames}"
policy = "every"
fps = {fps}

[mqtt]
host = "{host}"
port = {port}
protocol = "3.1.1"  # all that the demo's broker speaks; leave it out for a broker with MQTT 5
"""


def demo(
    frames: Annotated[
        int, typer.Option(metavar="N", min=20, max=10_000, help="Frames that the line runs.")
    ] = DEFAULT_FRAMES,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=999_999, help="Another seed: other defects, places and light.")
    ] = DEFAULT_SEED,
    fps: Annotated[float, typer.Option(metavar="FPS", min=1, max=60, help="Frames per second.")] = 15.0,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="For pictures, settings and log; an earlier demo's there are replaced."),
    ] = Path("demo-out"),
    bundle: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Another trained bundle than the one that comes with the station.",
            show_default="the bundled one",
        ),
    ] = BUNDLE,
    training_images: Annotated[
        Path | None,
        typer.Option(
            "--write-training-images",
            metavar="DIR",
            help="Only write the pictures that the bundled engine is trained and evaluated on, in MVTec AD layout.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """See it work: a sample line with planted defects, the daemon and a broker, all on this machine.

    A web of bricks runs under a camera whose light drifts. Scratches, stains,
    holes, threads and dents are planted on it, and the station is told of none
    of them. It sets its threshold from good frames ([bold]station calibrate[/]),
    inspects the line ([bold]station run[/]) and reports over MQTT to a broker that
    lives as long as the demo. Alerts are printed as they open and close; at the
    end a table says how many of the planted defects were found, and how many
    alarms were false.

    Ends by itself within a minute. The exit code is 0 if it ran, whatever it
    found. The settings file stays in DIR, as a pattern for your own station.

    Example: [cyan]station demo --seed 7[/]
    """
    if training_images is not None:
        write_training_images(training_images)
        return
    photograph()  # fails now, and in words, where the extra is not installed
    if not bundle.is_dir():
        raise DemoError(f"there is no bundle at {bundle}; name one with --bundle DIR")
    console = Console()
    logs.set_up(LogSettings(level="error"))  # the station's own log goes to a file
    _clear(out)
    log, settings = out / "station.log", out / "station.toml"
    tally = Tally(SampleLine(seed, frames))
    with Broker() as broker, Subscriber(HOST, broker.port, TOPICS, tally, console, out) as subscriber:
        console.print(f"[bold]1[/]  A broker on {HOST}:{broker.port}; subscribed to {TOPICS}/#", highlight=False)
        console.print(f"[bold]2[/]  station calibrate, on {N_CALIBRATION} good frames of the line", highlight=False)
        with console.status("scoring good frames"):
            _calibrate(bundle, out, log)
        write_file(
            settings,
            _SETTINGS.format(
                bundle=to_json(str(bundle.resolve())).decode(),  # a JSON string is a TOML string
                seed=seed,
                frames=frames,
                fps=fps,
                host=HOST,
                port=broker.port,
            ).encode(),
        )
        console.print(
            f"[bold]3[/]  station run, on {frames} frames with {len(tally.line.planted)} planted defects\n",
            highlight=False,
        )
        with station_process("run", "--config", str(settings), log=log) as process:
            if not subscriber.follow(process.poll):
                raise _failure("the station stopped working before the end of the line", log)
    subscriber.summarize()


def _clear(out: Path) -> None:
    """Empty the log; remove an earlier run's pictures and unsent alerts, which would be mistaken for this one's."""
    write_file(out / "station.log", b"")
    shutil.rmtree(out / "state", ignore_errors=True)
    for path in out.glob(PICTURES):
        path.unlink()


def _calibrate(bundle: Path, out: Path, log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="station-demo-") as folder:
        for i, grey in enumerate(good_frames(N_CALIBRATION)):
            (Path(folder) / f"{i:03}.png").write_bytes(cv2.imencode(".png", grey)[1].tobytes())
        arguments = ("--bundle", str(bundle), "--good", folder, "--false-alarms", str(FALSE_ALARM_RATE))
        with station_process("calibrate", *arguments, "--out", str(out / "calibration.json"), log=log) as process:
            if process.wait() != 0:
                raise _failure("station calibrate failed", log)


def _failure(what: str, log: Path) -> DemoError:
    return DemoError("\n".join([f"{what}. Its log, {log}, ends with:", *last_lines(log)]))
