"""The scores of a station over minutes and hours, for a chart: few enough points to draw, no peak left out."""

from typing import Any

import numpy as np

from station.dashboard.archive import Archive
from station.dashboard.fleet import HISTORY_SECONDS, ROW_SECONDS, Fleet
from station.dashboard.records import stamp

MAX_MINUTES = 24 * 60
MAX_POINTS = 1000
MAX_ALERTS = 1000


def chart(fleet: Fleet, archive: Archive, path: str, minutes: float, now: float) -> dict[str, Any]:
    """Spans of equal length up to now; each has its highest score and the last threshold, or none where none came.

    Returns:
        ``t`` (milliseconds, the span's start), ``max``, ``threshold``; and the alerts opened in that time.
    """
    span = minutes * 60
    unit = 1 if span <= HISTORY_SECONDS else ROW_SECONDS
    step = int(np.ceil(span / MAX_POINTS / unit)) * unit
    last = int(now) // step
    first = int(now - span) // step + 1
    seconds, scores = fleet.second_rows(path, int(now) - HISTORY_SECONDS + 1, int(now))
    if unit > 1:  # what is not kept second by second any more, and of an earlier run
        rows = archive.scores(path, first * step)
        older = [row for row in rows if not len(seconds) or row.time + ROW_SECONDS <= seconds[0]]
        seconds = np.concatenate([np.array([row.time for row in older], np.int64), seconds])
        kept = np.array([[row.score, row.threshold] for row in older], np.float64).reshape(-1, 2)
        scores = np.concatenate([kept, scores])
    highest = np.full(last - first + 1, np.nan)
    threshold = np.full(last - first + 1, np.nan)
    place = seconds // step - first
    seen = (place >= 0) & (place < len(highest))
    np.fmax.at(highest, place[seen], scores[seen, 0])
    threshold[place[seen]] = scores[seen, 1]  # of equal places the last one holds
    alerts, _ = archive.alerts(station=path, since=first * step, limit=MAX_ALERTS)
    return {
        "t": [(first + i) * step * 1000 for i in range(len(highest))],
        "max": _with_none(highest),
        "threshold": _with_none(threshold),
        "alerts": [
            {
                "id": record.id,
                "opened_at": stamp(record.opened_at),
                "closed_at": stamp(record.closed_at),
                "peak_score": record.peak_score,
            }
            for record in reversed(alerts)
        ],
    }


def _with_none(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
