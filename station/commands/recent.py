"""What ``station calibrate --from-recent`` takes from the daemon's ring, and what it shows the one who confirms."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from engines.bundle import Bundle
from station import thresholds
from station.calibration import Calibration, CalibrationError, load_calibration
from station.commands.files import inspect_files
from station.files import write_file
from station.heatmap import draw
from station.inspection import Inspector
from station.recent import FOLDER, RecentFrame, read_ring
from station.report import Change, Exhibit, Tally
from station.settings import Settings

SHEET = 48
"""Frames that the contact sheet shows."""
SHEET_SIDE = 420
SHORT = timedelta(hours=1)
MANY_LEFT_OUT = 0.05


@dataclass(slots=True)
class Recent:
    """The ring, parted into what the threshold comes from and what is left out; and what holds now.

    Attributes:
        settings: of the station.
        used: frames to calibrate on, in order of capture.
        left_out: frames that were anomalous when they were kept.
        before: the calibration in force; None: there is none that fits.
        threshold_before: that frames are judged by now; None without one.
    """

    settings: Settings
    used: list[RecentFrame]
    left_out: list[RecentFrame]
    before: Calibration | None
    threshold_before: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def span(self) -> tuple[datetime, datetime]:
        """When the first and the last of the frames were captured, UTC."""
        times = [frame.captured_at for frame in (*self.used, *self.left_out)]
        return min(times), max(times)


def find_recent(settings: Settings, bundle: Bundle, *, include_anomalous: bool) -> Recent:
    """The ring of the station, and the threshold in force.

    Raises:
        CalibrationError: there are no recent frames, or they cannot be read; says what to do.
    """
    folder = settings.state_folder / FOLDER
    where = (
        "Where systemd runs the station its state is elsewhere; name it and become who may read it, as in "
        "`sudo STATE_DIRECTORY=/var/lib/cbigan-station/cam-1 station calibrate …`"
    )
    try:
        ring = read_ring(folder)
    except OSError as error:
        raise CalibrationError(f"{folder}: cannot be read: {error.strerror}. {where}") from error
    if not ring:
        raise CalibrationError(
            f"{folder}: no recent frames. `station run` keeps one every {settings.health.recent_every:g} s there, "
            f"unless health.recent_mib is 0. {where}"
        )
    used = [frame for frame in ring if include_anomalous or not frame.anomalous]
    left_out = [] if include_anomalous else [frame for frame in ring if frame.anomalous]
    before = None
    if settings.calibration is not None:
        with suppress(CalibrationError):  # none yet, or another bundle's: nothing to compare with
            before = load_calibration(settings.calibration, bundle, settings.judge)
    threshold = settings.judge.threshold or (before.threshold if before else None)
    recent = Recent(settings, used, left_out, before, threshold)
    if settings.judge.threshold is not None:
        recent.notes.append(
            f"The settings say judge.threshold = {settings.judge.threshold:g}, which goes before any calibration: take "
            "it out for the new threshold to hold."
        )
    elif (commanded := _commanded(settings.state_folder, threshold)) is not None:
        recent.threshold_before = commanded
        recent.notes.append(f"The threshold of now, {commanded:.5g}, was set by command; it lapses with the old one.")
    first, last = recent.span
    if last - first < SHORT:
        recent.notes.append(
            f"The frames are from {_span_in_words(last - first)} only. They know nothing of other light, products or "
            "times of day."
        )
    if len(left_out) > MANY_LEFT_OUT * len(ring):
        recent.notes.append(
            f"{len(left_out)} of {len(ring)} recent frames were anomalous and are left out. If the pictures show that "
            "they are good, the threshold without them is too low: add --include-anomalous."
        )
    return recent


def _commanded(state: Path, base: float | None) -> float | None:
    """The threshold that a command has put in the place of ``base``."""
    with suppress(OSError, ValidationError), (state / thresholds.FILE).open("rb") as file:
        override = thresholds.Override.model_validate_json(file.read(thresholds.MAX_FILE_BYTES))
        return override.threshold if override.replaces.threshold == base else None
    return None


def _span_in_words(span: timedelta) -> str:
    minutes = round(span.total_seconds() / 60)
    return f"{minutes} minutes" if minutes != 1 else "one minute"


def compare(recent: Recent, used: Sequence[float], left_out: Sequence[float], after: float) -> Change:
    """What the new threshold changes, on the scores of the ring's frames."""
    before = recent.threshold_before

    def tally(what: str, scores: Sequence[float]) -> Tally:
        return Tally(
            what,
            len(scores),
            None if before is None else sum(score > before for score in scores),
            sum(score > after for score in scores),
        )

    rows = [tally("used", used)]
    if recent.left_out:
        rows.append(tally("left out, anomalous when they were kept", left_out))
    return Change(before, after, recent.span, tuple(rows), tuple(recent.notes))


def contact_sheet(
    recent: Recent, scores: dict[str, float], change: Change, inspector: Inspector, progress: Progress
) -> list[Exhibit]:
    """Pictures of the frames that score highest, highest first.

    They are inspected again: to keep every residual until the threshold is known would take gigabytes.

    Args:
        recent: the ring.
        scores: by path.
        change: what the thresholds are.
        inspector: that gave the scores.
        progress: where the progress goes.
    """
    frames = {str(frame.path): frame for frame in (*recent.used, *recent.left_out)}
    highest = sorted(scores, key=scores.__getitem__, reverse=True)[:SHEET]
    task = progress.add_task("contact sheet", total=len(highest))
    sheet = []
    for found in inspect_files(map(Path, highest), inspector, progress, task):
        frame, score = frames[found.name], found.inspection.score
        words = [f"{frame.captured_at:%Y-%m-%d %H:%M:%S} UTC", f"score {score:.5g}"]
        if change.before is not None:
            words.append("alarm now" if score > change.before else "good now")
        words.append("alarm with the new threshold" if score > change.after else "good with the new threshold")
        if frame.anomalous:
            words.append("was anomalous" + ("" if frame in recent.used else ", left out"))
        picture = draw(found.image, found.inspection, change.after)
        sheet.append(Exhibit.of("; ".join(words), score, picture, SHEET_SIDE))
    return sheet


def confirmed(console: Console, change: Change, page: Path) -> bool:
    """Show what changes and ask; without a terminal to answer on it is a no."""
    for line in change.lines():
        console.print(escape(line), highlight=False, soft_wrap=True)
    for note in change.notes:
        console.print(f"[yellow]Note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(f"The frames, highest scores first: [bold]{escape(str(page))}[/]", highlight=False, soft_wrap=True)
    try:
        return typer.confirm("Have you seen them, are they good, and shall the new threshold be written?")
    except typer.Abort:
        console.print()
        return False


def keep_old(path: Path) -> Path | None:
    """Copy the calibration that is about to be replaced; None where there is none.

    Raises:
        OutputError: the copy cannot be written.
        CalibrationError: the old file cannot be read.
    """
    try:
        old = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
    copy = path.with_name(f"{path.name}.{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.bak")
    write_file(copy, old)
    return copy


def how_to_activate(settings: Settings) -> str:
    """What makes a running station take the new calibration."""
    return (
        "The station goes on with the old threshold until it reloads: `systemctl reload station@NAME`, or a message "
        f"to {settings.topic_prefix}/cmd/reload."
    )
