"""What people said of alerts, as a folder for the next calibration or training.

``good/`` holds the frames of false alarms, ``defect/`` those of confirmed alerts, both as the camera gave them;
``feedback.jsonl`` has a line for each, also for those whose frame is not there.
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from station.dashboard.archive import Archive
from station.dashboard.records import AlertRecord
from station.files import OutputError

_FOLDERS = {"false-alarm": "good", "confirmed": "defect"}
LINES = "feedback.jsonl"
_OURS = re.compile(r"(good|defect)/[A-Za-z0-9][A-Za-z0-9._-]*\.png")
_PAGE = 200


class Exported(NamedTuple):
    """How many.

    Attributes:
        good: frames of false alarms.
        defect: frames of confirmed alerts.
        without_frame: judged alerts whose frame is not there.
    """

    good: int
    defect: int
    without_frame: int


def export_folder(archive: Archive, folder: Path, station: str | None = None) -> Exported:
    """Write the folder. Frames of an earlier export there go first: what was said of them may have changed.

    Args:
        archive: where alerts and frames are.
        folder: made if it is missing.
        station: of this one alone.

    Raises:
        OutputError: it cannot be written.
    """

    def put(name: str, frame: Path) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(frame, target)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        lines, exported = _collect(archive, station, put)
        (folder / LINES).write_text(lines, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{error.filename or folder}: cannot be written: {error.strerror}") from error
    return exported


def export_zip(archive: Archive, folder: Path, station: str | None = None) -> Path:
    """The same as a zip file, which the caller removes.

    Args:
        archive: where alerts and frames are.
        folder: where to make the file.
        station: of this one alone.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix="export-", suffix=".zip", delete=False) as file:
        path = Path(file.name)
        try:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as zip_:  # PNG is compressed already
                lines, _ = _collect(archive, station, lambda name, frame: zip_.write(frame, name))
                zip_.writestr(LINES, lines)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return path


def _clear(folder: Path) -> None:
    lines = folder / LINES
    if not lines.exists():
        return
    for line in lines.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            name = json.loads(line)["file"]
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(name, str) and _OURS.fullmatch(name):
            (folder / name).unlink(missing_ok=True)


def _collect(archive: Archive, station: str | None, put: Callable[[str, Path], None]) -> tuple[str, Exported]:
    lines: list[str] = []
    counts = dict.fromkeys(_FOLDERS, 0)
    taken: set[str] = set()
    missing = 0
    for record in _judged(archive, station):
        name = None
        frame = archive.picture(record.station, record.id, "frame")
        if frame is not None:
            name = _name(record, taken)
            try:
                put(name, frame)
                counts[record.verdict] += 1
            except FileNotFoundError:  # let go meanwhile, as there was too much
                name = None
        missing += name is None
        lines.append(json.dumps(_line(record, name)))
    text = "".join(f"{line}\n" for line in lines)
    return text, Exported(counts["false-alarm"], counts["confirmed"], missing)


def _judged(archive: Archive, station: str | None) -> Iterator[AlertRecord]:
    for verdict in _FOLDERS:
        before: tuple[float, int] | None = None
        while True:
            page, before = archive.alerts(station=station, verdict=verdict, before=before, limit=_PAGE)
            yield from page
            if before is None:
                break


def _name(record: AlertRecord, taken: set[str]) -> str:
    """``good/<alert>.png``; ids are unique to a station only."""
    stem = f"{_FOLDERS[record.verdict]}/{record.id}"
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.png"
    taken.add(name)
    return name


def _line(record: AlertRecord, name: str | None) -> dict[str, Any]:
    view = record.view()
    keys = (
        "station", "id", "opened_at", "closed_at", "peak_score", "threshold", "boxes", "peak_boxes",
        "frame_width", "frame_height", "name", "feedback",
    )  # fmt: skip
    return {"file": name, **{key: view[key] for key in keys}}
