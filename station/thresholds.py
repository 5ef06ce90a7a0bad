"""A threshold set by command: kept over restarts, until the station is calibrated anew; and who changed it, when.

``threshold.json`` is what holds now. ``threshold.log`` is a line of JSON for every change, written before the change
is made: there is none without its record.
"""

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.files import open_regular
from station.control import CommandError
from station.files import OutputError, sync_folder, write_file
from station.messages import Utc, utc_now

log = structlog.get_logger(__name__)

FILE = "threshold.json"
LOG = "threshold.log"
MAX_FILE_BYTES = 2**16
MAX_LOG_BYTES = 2**20  # then it becomes threshold.log.1, and the one of before goes
_LINE_BYTES = 4096  # no record is longer


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Base(_Model):
    """The threshold that holds without an override."""

    threshold: float
    source: str = Field(max_length=200, description="Where it is from, such as the digest of calibration.json.")


class Override(_Model):
    """``threshold.json``."""

    schema_version: Literal[1] = 1
    threshold: float = Field(gt=0, le=1e9)
    by: str = Field(min_length=1, max_length=100, description="Who asked; a claim.")
    at: Utc
    replaces: Base


class ThresholdStore:
    """Keeps the override in the state folder. For one thread.

    Attributes:
        trouble: why what was kept is not in force, ``code: words``; None: nothing is wrong.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = utc_now) -> None:
        """Nothing is read yet; ``load`` comes first.

        Args:
            folder: the state folder; made where it is missing.
            now: UTC.
        """
        self._folder = folder
        self._now = now
        self._base: Base | None = None
        self._override: Override | None = None
        self.trouble: str | None = None

    @property
    def override(self) -> Override | None:
        """What is in force instead of the base; None: the base is."""
        return self._override

    def load(self, base: float, source: str) -> Override | None:
        """Read the override, if it still holds.

        It lapses when the base is another than the one it replaced: who calibrates anew means the new threshold.

        Args:
            base: the threshold of the calibration or the settings.
            source: where that is from; changes with it, such as the digest of the calibration file.

        Returns:
            What to use instead of ``base``, or None. Never raises: a file that cannot be used is moved aside and
            told in ``trouble``.
        """
        self._base = Base(threshold=base, source=source)
        self._override, self.trouble = None, None
        found = self._read()
        self._settle(found)
        if found is None:
            return None
        if found.replaces != self._base:
            log.warning(
                "the threshold set by command has lapsed: the one it replaced has changed",
                was=found.threshold,
                by=found.by,
                at=found.at.isoformat(),
                now=base,
            )
            with suppress(OSError):
                self._record("lapsed", found.threshold, base, found.by)
            try:
                (self._folder / FILE).unlink()
            except OSError as error:
                self._report(f"threshold-stale: {self._folder / FILE}: cannot be removed: {error.strerror}")
            return None
        self._override = found
        log.info("threshold set by command", threshold=found.threshold, by=found.by, at=found.at.isoformat(), base=base)
        return found

    def set(self, threshold: float, by: str) -> Override:
        """Put another threshold in force, on disk first.

        Args:
            threshold: above it a frame is anomalous.
            by: who asks.

        Raises:
            CommandError: it cannot be written; what was in force still is.
        """
        if self._base is None:
            raise ValueError("load() comes first")
        override = Override(threshold=threshold, by=by, at=self._now(), replaces=self._base)
        before = self._override.threshold if self._override else self._base.threshold
        try:
            self._record("set", before, threshold, by, override.at)
            write_file(self._folder / FILE, override.model_dump_json(indent=1).encode() + b"\n")
        except (OSError, OutputError) as error:
            with suppress(OSError):
                self._record("not set", threshold, before, by)
            why = f"{self._folder / LOG}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise CommandError(f"threshold-not-kept: {why}") from error
        self._override, self.trouble = override, None
        return override

    def _read(self) -> Override | None:
        path = self._folder / FILE
        try:
            with open(path, "rb", opener=open_regular) as file:  # Path.open takes no opener
                text = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(f"threshold-unreadable: {path}: {error.strerror}; the base threshold is in force")
            return None
        if len(text) > MAX_FILE_BYTES:
            why = "too large"
        else:
            try:
                return Override.model_validate_json(text)
            except ValidationError as error:
                why = error.errors(include_url=False)[0]["msg"]
        aside = path.with_name(f"{FILE}.corrupt-{self._now():%Y%m%dT%H%M%SZ}")
        words = f"threshold-corrupt: {path}: {why[:100]}; the base threshold is in force"
        try:
            path.replace(aside)
        except OSError as error:
            self._report(f"{words}; cannot be moved aside: {error.strerror}")
        else:
            self._report(f"{words}; moved to {aside.name}")
        with suppress(OSError):
            self._record("lost", None, self._base.threshold if self._base else None, "")
        return None

    def _report(self, trouble: str) -> None:
        self.trouble = trouble
        log.error("threshold set by command", problem=trouble)

    def _settle(self, found: Override | None) -> None:
        """Note in the log where the change that it tells last is not in force, as when we were killed in between."""
        with suppress(OSError, ValueError):
            last = self._last_record()
            if last.get("what") == "set" and last.get("at") != (_rfc3339(found.at) if found else None):
                self._record("not set", last.get("to"), found.threshold if found else last.get("from"), "")

    def _last_record(self) -> dict[str, Any]:
        with open(self._folder / LOG, "rb", opener=open_regular) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_BYTES))
            lines = file.read().splitlines()
        record = json.loads(lines[-1]) if lines else {}
        return record if isinstance(record, dict) else {}

    def _record(
        self, what: str, before: float | None, after: float | None, by: str, at: datetime | None = None
    ) -> None:
        """Append a line and see it on disk.

        Raises:
            OSError: it is not, or only in part.
        """
        line = {
            "at": _rfc3339(at or self._now()),
            "what": what,
            "by": by,
            "from": before,
            "to": after,
            "source": self._base.source if self._base else None,
        }
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / LOG
        with suppress(FileNotFoundError):
            if path.lstat().st_size > MAX_LOG_BYTES - _LINE_BYTES:
                path.replace(path.with_name(f"{LOG}.1"))
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a disk that was full, a power cut
            data = b"\n" * torn + json.dumps(line, ensure_ascii=False).encode() + b"\n"
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        if size == 0:
            sync_folder(self._folder)


def _rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
