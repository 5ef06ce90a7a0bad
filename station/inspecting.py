"""The inspect threads: frames from the camera in, scores and alerts out to the publisher.

While the engine scores a frame, the next one is looked at and prepared, and the one before is judged and published:
docs/decisions/0068-pipeline.md.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from engines.bundle import Bundle
from engines.engine import EngineInfo
from engines.judging import Judging
from engines.opening import open_engine
from station.alert_writer import AlertWriter
from station.announce import score_message
from station.camera import CameraError, Capture, EndOfStream
from station.frames import Frame, Inspection
from station.health.camera import CameraWatch
from station.health.drift import DriftWatch
from station.health.metrics import MetricsServer
from station.health.vitals import StageWindow
from station.inspection import Inspector, Prepared, Scored
from station.judge import AlertTracker
from station.publisher import Publisher
from station.recent import RecentFrames
from station.settings import Settings
from station.verdict import Verdict, make_tiler


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


@dataclass(frozen=True, slots=True)
class _Looked:
    """A frame that was looked at.

    Attributes:
        prepared: for the engine; None: the frame is not to be inspected.
        seconds: that it took.
    """

    frame: Frame
    prepared: Prepared | None
    seconds: float


class InspectThread:
    """Opens the engine and alone uses it: some back ends tie a device context to a thread.

    Two more threads work for it: ``look`` takes the next frame, checks the camera by it and prepares it; ``conclude``
    judges what was scored and publishes it. Each has one frame at a time, and their order is kept.

    Other threads may read the attributes, and set ``verdict`` and ``paused``.

    Attributes:
        verdict: that the next frame is judged by.
        paused: frames are taken and thrown away; what was open is closed.
        engine: what the engine runs on; None until it is open.
        frames: frames inspected.
        anomalous: frames of these that scored above the threshold.
        last: the newest frame, and what inspecting it gave: None for one that was not inspected.
        building: what is done of a plan, in words; None: nothing is being built.
        steps: signs of life: frames done with and steps of a build.
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
            on_first: called before the first score is published, not in the caller's thread.
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
        self._alerts = AlertWriter(settings.alerts, surroundings.publisher, settings.topic_prefix)
        self._idle = threading.Event()  # the engine has no frame
        self._look_from = 0.0  # time.monotonic() from which on the next frame is ready when the engine is
        self._infer_seconds = 0.0  # that the engine took for the last frame
        self.verdict = verdict
        self.paused = False
        self.engine: EngineInfo | None = None
        self.frames = 0
        self.anomalous = 0
        self.last: tuple[Frame, Inspection | None] | None = None
        self.building: str | None = None
        self.steps = 0
        self.failure: Exception | None = None

    @property
    def alerts(self) -> int:
        """Alerts opened."""
        return self._alerts.opened

    def start(self) -> None:
        """Open the engine and begin, in the background."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish the frames under way, close what is open; waits at most ``timeout`` seconds."""
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
                with self._alerts:
                    self._inspect_all(inspector)
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

    def _inspect_all(self, inspector: Inspector) -> None:
        """Look at frame n + 1 and conclude frame n - 1 while the engine scores frame n."""
        before: Future[None] | None = None
        with ThreadPoolExecutor(1, "look") as look, ThreadPoolExecutor(1, "conclude") as conclude:
            try:
                coming = look.submit(self._look, inspector)
                while not self._stopping.is_set():
                    looked = coming.result()
                    if looked is not None and looked.prepared is not None:
                        self._look_from = time.monotonic() + self._infer_seconds - looked.seconds
                        self._idle.clear()
                    coming = look.submit(self._look, inspector)
                    if looked is None:
                        continue
                    scored = inspector.infer(looked.prepared) if looked.prepared is not None else None
                    self._idle.set()
                    if scored is not None:
                        self._infer_seconds = scored.ms["infer"] / 1e3
                    if before is not None:
                        before.result()
                    before = conclude.submit(self._conclude, looked.frame, scored, inspector)
            except EndOfStream:
                pass
            finally:
                self._idle.set()
                try:
                    if before is not None:
                        before.result()
                finally:
                    self._close_alerts()

    # --- each in the thread of its name ---

    def _look(self, inspector: Inspector) -> _Looked | None:
        """The next frame, prepared; None if none came for a second."""
        capture = self._around.capture
        if capture.policy == "latest":
            # Taken any sooner, a frame would grow old before the engine is free, while newer ones are thrown away.
            self._idle.wait(max(0.0, self._look_from - time.monotonic()))
        frame = capture.get(timeout=1.0)
        if frame is None:
            return None
        started = time.monotonic()
        prepared = None
        if self._around.camera.check(frame) is None and not self.paused:
            try:
                prepared = inspector.prepare(frame.image)
            except ValueError as error:  # frame or region of interest and model do not go together
                raise CameraError(f"frame {frame.seq} {frame.name}: {error}") from error
        return _Looked(frame, prepared, time.monotonic() - started)

    def _conclude(self, frame: Frame, scored: Scored | None, inspector: Inspector) -> None:
        if scored is None:
            self._close_alerts()  # a defect cannot be followed through what nobody has looked at
            self.last = (frame, None)
        else:
            self._publish(frame, inspector.judge(scored))
        self.steps += 1

    def _publish(self, frame: Frame, inspection: Inspection) -> None:
        self.last = (frame, inspection)
        if self.frames == 0:
            self._on_first()
        threshold = self.verdict.threshold
        self._tracker.threshold = threshold
        events = self._tracker.update(frame, inspection)
        message = score_message(frame, inspection, threshold)
        around = self._around
        around.publisher.publish(message)
        self._alerts.write(events)
        around.stages.add(message.latency_ms)
        around.metrics.observe(inspection.score, threshold, message.latency_ms)
        around.drift.add(inspection.score)
        around.recent.offer(frame, inspection.score, anomalous=message.anomalous)
        self.anomalous += message.anomalous
        self.frames += 1

    def _close_alerts(self) -> None:
        self._alerts.write(self._tracker.flush())


class _BuildStoppedError(Exception):
    """The station is to stop while an engine is being built."""
