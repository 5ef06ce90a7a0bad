"""The inspect thread: frames from the camera in, scores and alerts out to the publisher."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from engines.bundle import Bundle
from engines.engine import EngineInfo
from engines.judging import Judging
from engines.opening import open_engine
from engines.pictures import encode_jpeg, encode_png
from station.announce import alert_message, score_message
from station.camera import CameraError, Capture, EndOfStream
from station.frames import Frame, Inspection
from station.health.camera import CameraWatch
from station.health.drift import DriftWatch
from station.health.metrics import MetricsServer
from station.health.vitals import StageWindow
from station.heatmap import draw
from station.inspection import Inspector
from station.judge import AlertEvent, AlertTracker
from station.publisher import Publisher
from station.recent import RecentFrames
from station.settings import Settings
from station.verdict import Verdict, make_tiler

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts that the inspect thread takes from and gives to.

    Attributes:
        capture: where frames come from.
        publisher: takes scores and alerts.
        camera: looks at every frame before it is inspected.
        drift: takes every score.
        stages: takes the time of every stage.
        recent: keeps a frame now and then.
        metrics: counts every frame.
    """

    capture: Capture
    publisher: Publisher
    camera: CameraWatch
    drift: DriftWatch
    stages: StageWindow
    recent: RecentFrames
    metrics: MetricsServer


class InspectThread:
    """Opens the engine and alone uses it: some back ends tie a device context to a thread.

    Other threads may read the attributes, and set ``verdict`` and ``paused``.

    Attributes:
        verdict: that the next frame is judged by.
        paused: frames are taken and thrown away; what was open is closed.
        engine: what the engine runs on; None until it is open.
        frames: frames inspected.
        anomalous: frames of these that scored above the threshold.
        alerts: alerts opened.
        last: the newest frame, and what inspecting it gave: None for one that was not inspected.
        building: what is done of a plan, in words; None: nothing is being built.
        steps: signs of life: frames taken and steps of a build.
        failure: why the thread has ended before the source.
    """

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        verdict: Verdict,
        surroundings: Surroundings,
        on_first: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        """Prepare; ``start`` opens the engine.

        Args:
            settings: of the station.
            bundle: to open.
            verdict: that the first frame is judged by.
            surroundings: the parts around.
            on_first: called in the thread before the first score is published.
            on_end: called in the thread when the source is over or something failed, but not after ``stop``.
        """
        self._settings = settings
        self._bundle = bundle
        self._around = surroundings
        self._on_first = on_first
        self._on_end = on_end
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inspect", daemon=True)
        self._tracker = AlertTracker(settings.alerts, verdict.threshold, verdict.median_good)
        self.verdict = verdict
        self.paused = False
        self.engine: EngineInfo | None = None
        self.frames = 0
        self.anomalous = 0
        self.alerts = 0
        self.last: tuple[Frame, Inspection | None] | None = None
        self.building: str | None = None
        self.steps = 0
        self.failure: Exception | None = None

    def start(self) -> None:
        """Open the engine and begin, in the background."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish the frame under way, close what is open; waits at most ``timeout`` seconds."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            engine = open_engine(self._bundle, self._settings.engine, self._on_build)
            self.building = None
            try:
                self.engine = engine.info
                tiler = make_tiler(self._settings, self._bundle)
                inspector = Inspector(engine, tiler, Judging.of(self._bundle.manifest), self._settings.judge)
                try:
                    self._take_all(inspector)
                finally:
                    self._close_alerts()
            finally:
                engine.close()
        except _BuildStoppedError:
            return
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            self.failure = error
        if not self._stopping.is_set():
            self._on_end()

    def _on_build(self, doing: str, share: float) -> None:
        if self._stopping.is_set():
            raise _BuildStoppedError
        self.building = f"preparing the engine, {share:.0%} done ({doing})"
        self.steps += 1

    def _take_all(self, inspector: Inspector) -> None:
        while not self._stopping.is_set():
            try:
                frame = self._around.capture.get(timeout=1.0)
            except EndOfStream:
                return
            if frame is None:
                continue
            if self._around.camera.check(frame) is None and not self.paused:
                self._inspect(frame, inspector)
            else:
                self._close_alerts()  # a defect cannot be followed through what nobody has looked at
                self.last = (frame, None)
            self.steps += 1

    def _inspect(self, frame: Frame, inspector: Inspector) -> None:
        started = time.monotonic()
        try:
            inspection = inspector.inspect(frame.image)
        except ValueError as error:  # frame or region of interest and model do not go together
            raise CameraError(f"frame {frame.seq} {frame.name}: {error}") from error
        self.last = (frame, inspection)
        if self.frames == 0:
            self._on_first()
        threshold = self.verdict.threshold
        self._tracker.threshold = threshold
        events = self._tracker.update(frame, inspection)
        message = score_message(frame, inspection, threshold, started)
        around = self._around
        around.publisher.publish(message)
        for event in events:
            self._publish(event)
        around.stages.add(message.latency_ms)
        around.metrics.observe(inspection.score, threshold, message.latency_ms)
        around.drift.add(inspection.score)
        around.recent.offer(frame, inspection.score, anomalous=message.anomalous)
        self.anomalous += message.anomalous
        self.frames += 1

    def _close_alerts(self) -> None:
        for event in self._tracker.flush():
            self._publish(event)

    def _publish(self, event: AlertEvent) -> None:
        alerts, jpeg = self._settings.alerts, None
        if event.new_peak:
            peak = event.peak
            picture = draw(peak.frame.image, peak.inspection, event.threshold, peak.boxes)
            jpeg = encode_jpeg(picture, alerts.image_max_side, alerts.image_quality)
        with_frame = alerts.frame and event.event == "close"
        png = encode_png(event.peak.frame.image) if with_frame else None
        self.alerts += event.event == "open"
        message = alert_message(event, self._settings.topic_prefix, with_frame=with_frame)
        self._around.publisher.publish_alert(message, jpeg, png)
        log.info("alert", change=event.event, id=event.id, peak_score=event.peak.score, last_frame=event.last_frame)


class _BuildStoppedError(Exception):
    """The station is to stop while an engine is being built."""
