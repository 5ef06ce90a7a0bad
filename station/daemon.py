"""The daemon: capture thread → inspect thread → publish thread, and the main thread that watches over them.

Capture and publisher bring their threads and bounded hand-overs along. The inspect thread opens the engine and
alone uses it: some back ends tie a device context to a thread. The main thread wakes a few times a second to
see how the parts do, and to tell that to the broker and to systemd.
"""

import logging
import queue
import signal
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import Literal

import structlog

from engines.bundle import Bundle, read_bundle
from engines.engine import EngineInfo
from engines.opening import open_engine
from engines.tiling import Tiler
from station import __version__, systemd
from station.calibration import Calibration, load_calibration
from station.camera import CameraError, Capture, EndOfStream, redact_url
from station.frames import Frame, Inspection
from station.heatmap import draw, encode_jpeg
from station.inspection import Inspector
from station.judge import AlertEvent, AlertTracker
from station.messages import Alert, Info, Rectangle, Score, Status, alert_image_topic
from station.publisher import Publisher
from station.settings import Settings

log = structlog.get_logger(__name__)

TICK = 0.2  # seconds between two looks at the parts
STATUS_LINE_EVERY = 2.0  # seconds; systemd's STATUS=
REASON_REFRESH = 30.0  # seconds before the same state with new words ("no frame for 35 s") is published again
LOG_EVERY = 60.0  # seconds; a sign of life in the log
STOP_SECONDS = 1.4  # from the signal on; two are promised, and a busy machine takes its share
DRAIN_SECONDS = 10.0  # at the end of a file or folder there is no hurry: every alert should arrive
_EXTEND_MICROSECONDS = 30_000_000
_END = "the source is over"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The threshold that frames are judged by, and where it comes from."""

    threshold: float
    calibration: Calibration | None

    @property
    def median_good(self) -> float | None:
        """Median score of good frames; None without a calibration."""
        return self.calibration.good.median if self.calibration else None

    @property
    def calibrated_at(self) -> datetime | None:
        """When the threshold was calibrated; None for one from the settings."""
        return self.calibration.created_at if self.calibration else None


def read_verdict(settings: Settings, bundle: Bundle) -> Verdict:
    """The threshold from the settings, else from the calibration.

    Raises:
        CalibrationError: the file is missing, damaged or was made for another bundle.
    """
    calibration = load_calibration(settings.calibration, bundle, settings.judge) if settings.calibration else None
    threshold = settings.judge.threshold
    if threshold is None and calibration is not None:
        threshold = calibration.threshold
    if threshold is None:
        raise ValueError("neither judge.threshold nor a calibration")  # Settings refuses this
    return Verdict(threshold, calibration)


def make_tiler(settings: Settings, bundle: Bundle) -> Tiler:
    """The tiler for this bundle and the camera's region of interest."""
    roi = settings.camera.roi
    return Tiler(bundle.manifest.preprocessing, roi.box if roi else None)


class _BuildStoppedError(Exception):
    """The station is to stop while an engine is being built."""


class Daemon:
    """One station at work. ``run`` returns when the source is over or ``stop`` was called."""

    def __init__(self, settings: Settings, notifier: systemd.Notifier) -> None:
        """Read bundle and calibration and make the parts; nothing runs yet.

        Raises:
            BundleError, CalibrationError, CameraError, SettingsError: what the parts cannot use.
        """
        self._settings = settings
        self._notifier = notifier
        self._bundle = read_bundle(settings.bundle)
        self._verdict = read_verdict(settings, self._bundle)
        self._session = uuid.uuid4().hex
        self._capture = Capture(settings.camera)
        self._publisher = Publisher(settings.mqtt, settings.topic_prefix, settings.client_id, self._session)
        self._tracker = AlertTracker(settings.alerts, self._verdict.threshold, self._verdict.median_good)
        self._inspect_thread = threading.Thread(target=self._inspect_all, name="inspect", daemon=True)
        self._wake: queue.SimpleQueue[str] = queue.SimpleQueue()  # its put() is safe in a signal handler
        self._stopping = threading.Event()
        self._engine_info: EngineInfo | None = None
        self._failure: Exception | None = None
        self._inspected = 0  # frames
        self._building: str | None = None  # what is done of a TensorRT plan, in words
        self._build_steps = 0
        self._last_score = 0.0
        self._frame_size: tuple[int, int] | None = None
        self._supervision = _Supervision()
        self._reporting = threading.Lock()

    def stop(self, why: str) -> None:
        """Make ``run`` return; may be called from a signal handler or another thread."""
        self._wake.put(why)

    def run(self) -> bool:
        """Work until stopped or the source is over.

        Returns:
            Whether all alerts reached the broker, as far as that can be asked: always true after ``stop``.

        Raises:
            CameraError, EngineError: a part has failed for good. The broker then publishes the last
                will, ``offline``.
        """
        log.info(
            "starting",
            version=__version__,
            station=self._settings.topic_prefix,
            session=self._session,
            bundle=self._bundle.manifest.name,
            threshold=self._verdict.threshold,
            camera=redact_url(self._settings.camera.url),
        )
        self._notifier.notify(STATUS="opening engine and camera")
        self._capture.start()
        self._publisher.start()
        self._inspect_thread.start()
        return self._shut_down(self._watch_over())

    # --- main thread ---

    def _watch_over(self) -> str:
        why = None
        while why is None:
            with suppress(queue.Empty):
                why = self._wake.get(timeout=TICK)
            self._look()  # also at the end: a short folder may be over before the first look
        return why

    def _look(self) -> None:
        """See how the parts do; tell the broker and systemd."""
        watch, now = self._supervision, time.monotonic()
        fault = self._capture.stats.fault
        state: Literal["online", "degraded"] | None = "degraded" if fault else "online" if self._inspected else None
        if state is not None:
            self._report(state, (f"camera: {fault}",) if fault else (), now)
        if state == "online" and not watch.ready:
            watch.ready = True
            self._notifier.notify(READY=1)
        work = self._inspected + self._build_steps
        # Proof of life is a frame inspected, a step of the engine's build, or a state that says why there is none and
        # that was reported. A timer alone would prove that this loop runs and nothing else.
        if (work > watch.work_at_ping or state == "degraded") and now >= watch.next_ping:
            watch.work_at_ping = work
            if not watch.ready:
                self._notifier.notify(EXTEND_TIMEOUT_USEC=_EXTEND_MICROSECONDS)
            elif self._notifier.watchdog_seconds is not None:
                self._notifier.notify(WATCHDOG=1)
            watch.next_ping = now + (self._notifier.watchdog_seconds or 20.0) / 4
        if now >= watch.next_status_line:
            self._notifier.notify(STATUS=self._describe(state, fault))
            watch.next_status_line = now + STATUS_LINE_EVERY
        if now >= watch.next_log:
            watch.next_log = now + LOG_EVERY
            log.info("at work", **self._figures())

    def _report(self, state: Literal["online", "degraded"], reasons: tuple[str, ...], now: float) -> None:
        watch = self._supervision
        with self._reporting:
            if state == watch.state and (reasons == watch.reasons or now < watch.next_reason):
                return
            changed = state != watch.state
            watch.state, watch.reasons, watch.next_reason = state, reasons, now + REASON_REFRESH
            self._publisher.publish(Status(state=state, reasons=reasons, session=self._session))
            if changed:
                log.log(
                    logging.WARNING if state == "degraded" else logging.INFO, "status", state=state, reasons=reasons
                )
                self._publish_info()

    def _describe(self, state: str | None, fault: str | None) -> str:
        broker = self._publisher.connection
        return "; ".join(
            (
                f"{state or self._building or 'starting'}{f' ({fault})' if fault else ''}",
                f"{self._inspected} frames",
                f"last score {self._last_score:.4g} of {self._verdict.threshold:.4g}",
                "broker connected" if broker.connected else f"no broker ({broker.problem or 'connecting'})",
            )
        )

    def _figures(self) -> dict[str, object]:
        stats = self._capture.stats
        return {
            "inspected": self._inspected,
            "frames_dropped": stats.dropped,
            "reconnects": stats.reconnects,
            "broker": self._publisher.connection.connected,
            "scores_dropped": self._publisher.scores_dropped,
            "alerts_dropped": self._publisher.alerts_dropped,
        }

    def _shut_down(self, why: str) -> bool:
        deadline = time.monotonic() + STOP_SECONDS
        log.info("stopping", why=why)
        self._notifier.notify(STOPPING=1, STATUS=f"stopping: {why}")
        self._stopping.set()
        self._capture.stop(timeout=0.2)
        self._inspect_thread.join(0.6)
        if self._failure is not None:
            self._publisher.close(None, timeout=1.0)
            raise self._failure
        at_end = why == _END
        if at_end and not self._publisher.drain(DRAIN_SECONDS):
            log.warning("the broker does not take what is left", problem=self._publisher.connection.problem)
        figures = self._figures()
        left = self._publisher.close(
            Status(state="stopped", session=self._session), timeout=1.0 if at_end else deadline - time.monotonic()
        )
        if left:
            log.error("alerts and pictures lost: the broker was not there to take them", lost=left)
        log.info("stopped", **figures)
        return not (at_end and left)

    # --- inspect thread ---

    def _inspect_all(self) -> None:
        try:
            engine = open_engine(self._bundle, self._settings.engine, self._on_build)
            self._building = None
            try:
                self._engine_info = engine.info
                inspector = Inspector(
                    engine,
                    make_tiler(self._settings, self._bundle),
                    self._bundle.manifest.lambda_,
                    self._settings.judge,
                )
                try:
                    self._inspect_frames(inspector)
                finally:
                    for event in self._tracker.flush():
                        self._publish_alert(event)
            finally:
                engine.close()
        except _BuildStoppedError:
            return
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            self._failure = error
        self._wake.put(_END if self._failure is None else "inspection failed")

    def _on_build(self, doing: str, share: float) -> None:
        if self._stopping.is_set():
            raise _BuildStoppedError
        self._building = f"building the TensorRT plan, {share:.0%} done ({doing})"
        self._build_steps += 1

    def _inspect_frames(self, inspector: Inspector) -> None:
        while not self._stopping.is_set():
            try:
                frame = self._capture.get(timeout=1.0)
            except EndOfStream:
                return
            if frame is not None:
                self._inspect(frame, inspector)

    def _inspect(self, frame: Frame, inspector: Inspector) -> None:
        started = time.monotonic()
        try:
            inspection = inspector.inspect(frame.image)
        except ValueError as error:  # frame or region of interest and model do not go together
            raise CameraError(f"frame {frame.seq} {frame.name}: {error}") from error
        self._frame_size = inspection.grid.frame_size
        if self._inspected == 0:  # here and not at the next look: subscribers learn of the station before its scores
            self._report("online", (), time.monotonic())
        events = self._tracker.update(frame, inspection)
        self._publisher.publish(self._score(frame, inspection, started))
        for event in events:
            self._publish_alert(event)
        self._last_score = inspection.score
        self._inspected += 1

    def _score(self, frame: Frame, inspection: Inspection, started: float) -> Score:
        milliseconds = {
            "wait": 1e3 * (started - frame.monotonic),
            **inspection.ms,
            "total": 1e3 * (time.monotonic() - frame.monotonic),
        }
        return Score(
            frame=frame.seq,
            captured_at=frame.captured_at,
            score=inspection.score,
            threshold=self._verdict.threshold,
            anomalous=inspection.score > self._verdict.threshold,
            latency_ms={stage: round(ms, 3) for stage, ms in milliseconds.items()},
            name=frame.name,
        )

    def _publish_alert(self, event: AlertEvent) -> None:
        height, width = event.frame_size
        message = Alert(
            event=event.event,
            id=event.id,
            dedupe_key=f"{event.id}/{event.event}/{event.last_frame}",
            opened_at=event.opened_at,
            first_frame=event.first_frame,
            last_frame=event.last_frame,
            score=event.score,
            peak_score=event.peak.score,
            threshold=event.threshold,
            boxes=tuple(Rectangle(x=box.x, y=box.y, w=box.w, h=box.h) for box in event.boxes),
            frame_width=width,
            frame_height=height,
            name=event.peak.frame.name,
            image_topic=f"{self._settings.topic_prefix}/{alert_image_topic(event.id)}",
        )
        self._publisher.publish(message)
        log.info("alert", change=event.event, id=event.id, peak_score=event.peak.score, last_frame=event.last_frame)
        if event.new_peak:
            peak, alerts = event.peak, self._settings.alerts
            picture = draw(peak.frame.image, peak.inspection, event.threshold, peak.boxes)
            self._publisher.publish_image(event.id, encode_jpeg(picture, alerts.image_max_side, alerts.image_quality))

    def _publish_info(self) -> None:
        if self._engine_info is None:
            return
        manifest, size = self._bundle.manifest, self._frame_size
        self._publisher.publish(
            Info(
                session=self._session,
                version=__version__,
                bundle_name=manifest.name,
                bundle_sha256=self._bundle.digest,
                engine_backend=f"{self._engine_info.backend} {self._engine_info.backend_version}",
                engine_device=self._engine_info.device,
                engine_precision=self._engine_info.precision,
                threshold=self._verdict.threshold,
                calibrated_at=self._verdict.calibrated_at,
                camera_url=redact_url(self._settings.camera.url),
                frame_width=size[1] if size else None,
                frame_height=size[0] if size else None,
            )
        )


@dataclass(slots=True)
class _Supervision:
    """What the main thread remembers from one look to the next; times are monotonic seconds."""

    ready: bool = False
    state: str | None = None
    reasons: tuple[str, ...] = ()
    next_reason: float = 0.0
    work_at_ping: int = 0
    next_ping: float = 0.0
    next_status_line: float = 0.0
    next_log: float = 0.0


def run(settings: Settings) -> bool:
    """Run a station until its source is over, SIGTERM or SIGINT. From the main thread only.

    Returns:
        See ``Daemon.run``.

    Raises:
        SettingsError, CalibrationError, CameraError, EngineError: in words for the user.
    """
    daemon = Daemon(settings, systemd.from_environment())

    def stop(number: int, _frame: FrameType | None) -> None:
        daemon.stop(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return daemon.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
