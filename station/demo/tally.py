"""What the station found of what was planted: alerts beside the ground truth, in time and place."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from engines.geometry import Box
from station.demo.sample_line import SampleLine


@dataclass(slots=True)
class Tally:
    """Counts alerts against the planted defects of a line.

    An alert has found a defect if one of its messages puts a box where, in that frame, the defect is. An alert of
    which no message does is a false alarm.

    Attributes:
        line: the line that was inspected.
        alerts: for every alert id, in order of opening, the indices of the planted defects that it found.
    """

    line: SampleLine
    alerts: dict[str, set[int]] = field(default_factory=dict)

    def take(self, id_: str, frame: int, boxes: Iterable[Box]) -> set[int]:
        """Take one message of an alert.

        Args:
            id_: of the alert.
            frame: that its boxes belong to; counted from 1, as the station does.
            boxes: frame pixels.

        Returns:
            What the alert has found so far, as indices of ``line.planted``.
        """
        found = self.alerts.setdefault(id_, set())
        boxes = tuple(boxes)
        for i, planted in enumerate(self.line.planted):
            place = planted.box(frame - 1)
            if place is not None and any(box.intersects(place) for box in boxes):
                found.add(i)
        return found

    def alerts_for(self, index: int) -> list[str]:
        """Ids of the alerts that found planted defect ``index``."""
        return [id_ for id_, found in self.alerts.items() if index in found]

    @property
    def false_alarms(self) -> list[str]:
        """Ids of the alerts that found nothing planted."""
        return [id_ for id_, found in self.alerts.items() if not found]

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """For every kind that was planted: how many were planted and how many of them were found."""
        counts: dict[str, tuple[int, int]] = {}
        for i, planted in enumerate(self.line.planted):
            n, n_found = counts.get(planted.kind, (0, 0))
            counts[planted.kind] = (n + 1, n_found + bool(self.alerts_for(i)))
        return counts
