"""Alerts on their way to the outbox: their pictures are drawn, encoded and committed in a thread of its own."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import final

import structlog

from engines.pictures import encode_jpeg, encode_png
from station.announce import alert_message
from station.heatmap import draw
from station.judge import AlertEvent
from station.publisher import Publisher
from station.settings import AlertSettings

log = structlog.get_logger(__name__)

ROOM = 2
"""Events that may wait or be worked on. Each holds a frame and its heat, 14 MB of a 1920 x 1080 camera; and at no time
are more than these between the verdict and the disk."""


@final
class AlertWriter:
    """Puts alerts into the outbox, in the order given, without holding up whoever gives them.

    ``with AlertWriter(…) as alerts: alerts.write(events)``; the end of the block waits for all.

    Attributes:
        opened: alerts opened, and safe in the outbox.
    """

    def __init__(self, settings: AlertSettings, publisher: Publisher, topic_prefix: str) -> None:
        """Prepare; the thread starts with the first alert.

        Args:
            settings: how pictures are encoded.
            publisher: takes alerts and pictures.
            topic_prefix: as the publisher's.
        """
        self._settings = settings
        self._publisher = publisher
        self._prefix = topic_prefix
        self._thread = ThreadPoolExecutor(1, "alerts")
        self._under_way: deque[Future[None]] = deque()
        self.opened = 0

    def write(self, events: Iterable[AlertEvent]) -> None:
        """Take what there is to tell of a frame, perhaps nothing; waits where ``ROOM`` earlier events are not done.

        Raises:
            Exception: what went wrong with an earlier event.
        """
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft().result()
        for event in events:
            if len(self._under_way) >= ROOM:
                self._under_way.popleft().result()
            self._under_way.append(self._thread.submit(self._write, event))

    def __enter__(self) -> "AlertWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        for done in self._under_way:
            done.result()

    def _write(self, event: AlertEvent) -> None:
        """In the thread."""
        settings, peak, jpeg = self._settings, event.peak, None
        if event.new_peak:
            picture = draw(peak.frame.image, peak.inspection, event.threshold, peak.boxes)
            jpeg = encode_jpeg(picture, settings.image_max_side, settings.image_quality)
        with_frame = settings.frame and event.event == "close"
        png = encode_png(peak.frame.image) if with_frame else None
        self._publisher.publish_alert(alert_message(event, self._prefix, with_frame=with_frame), jpeg, png)
        self.opened += event.event == "open"
        log.info("alert", change=event.event, id=event.id, peak_score=peak.score, last_frame=event.last_frame)
