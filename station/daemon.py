"""The daemon: capture thread → inspect threads → publish thread, and the main thread that watches over them.

Capture, inspection (station/inspecting.py) and publisher bring their threads and bounded hand-overs along. The main
thread wakes a few times a second to see how they do, tells that to the broker and to systemd, and carries commands
out.
"""

import queue
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import FrameType

import paho.mqtt.client as mqtt
import structlog

from engines.bundle import read_bundle
from engines.errors import EngineError
from engines.pictures import encode_jpeg
from station import __version__, systemd
from station.announce import info_message
from station.calibration import CalibrationError
from station.camera import CameraError, Capture, redact_url
from station.control import Answer, CommandError, Control, Handler, Order, Result
from station.health.camera import CameraWatch
from station.health.drift import DriftWatch
from station.health.metrics import Figures, MetricsServer
from station.health.vitals import StageWindow, resident_bytes, temperatures
from station.heatmap import draw
from station.inspecting import InspectThread, Surroundings
from station.judge import find_regions
from station.messages import (
    CameraHealth,
    Command,
    Health,
    SetThreshold,
    Status,
    Verb,
    snapshot_topic,
    utc_now,
)
from station.publisher import Publisher
from station.recent import FOLDER as RECENT
from station.recent import RecentFrames
from station.settings import Settings, SettingsError
from station.state import StateFolder
from station.supervision import State, Supervision
from station.thresholds import ThresholdStore
from station.verdict import read_verdict

log = structlog.get_logger(__name__)

TICK = 0.2  # seconds between two looks at the parts
LOG_EVERY = 60.0  # seconds; a sign of life in the log
STOP_SECONDS = 1.4  # from the signal on; two are promised, and a busy machine takes its share
DRAIN_SECONDS = 10.0  # at the end of a file or folder there is no hurry: every alert should arrive
_END = "the source is over"
_FAILED = "inspection failed"
_RELOAD = "reload"


class Daemon:
    """One station at work. ``run`` returns when the source is over, ``stop`` was called or new settings are to hold."""

    def __init__(
        self, settings: Settings, notifier: systemd.Notifier, state: StateFolder, reread: Callable[[], Settings]
    ) -> None:
        """Read bundle and calibration and make the parts; nothing runs yet.

        Args:
            settings: of the station.
            notifier: the line to systemd.
            state: the station's state folder, held open by the caller.
            reread: the settings as they are now, for a reload.

        Raises:
            BundleError, CalibrationError, CameraError, SettingsError: what the parts cannot use.
        """
        self._settings = settings
        self._notifier = notifier
        self._state = state
        self._reread = reread
        self._bundle = read_bundle(settings.bundle)
        verdict = read_verdict(settings, self._bundle)
        calibration = verdict.calibration
        self._session = uuid.uuid4().hex
        self._capture = Capture(settings.camera)
        self._publisher = Publisher(
            settings.mqtt, settings.topic_prefix, settings.client_id, self._session, state.outbox
        )
        self._publisher.on_command = self._on_command
        self._control = Control(settings.commands)
        self._camera = CameraWatch(calibration.healthy if calibration else None, settings.health)
        self._drift = DriftWatch(calibration.good_scores if calibration else None, settings.health)
        self._stages = StageWindow()
        self._recent = RecentFrames(state.folder / RECENT, settings.health)
        build = {
            "version": __version__,
            "bundle": self._bundle.manifest.name,
            "bundle_sha256": self._bundle.digest,
        }
        self._metrics = MetricsServer(settings.metrics, self._figures, build)
        self._thresholds = ThresholdStore(state.folder)
        override = self._thresholds.load(verdict.threshold, verdict.source)
        self._inspect = InspectThread(
            settings,
            self._bundle,
            replace(verdict, threshold=override.threshold) if override else verdict,
            Surroundings(
                self._capture,
                self._publisher,
                self._camera,
                self._drift,
                self._stages,
                self._recent,
                self._metrics,
            ),
            # In its thread and not at the next look: subscribers learn of the station before its scores.
            on_first=lambda: self._report("online", (), time.monotonic()),
            on_end=lambda: self._wake.put(_FAILED if self._inspect.failure else _END),
        )
        self._supervision = Supervision(notifier, self._session, self._publisher.publish)
        # Why to stop, or a command to carry out; its put() is safe in a signal handler.
        self._wake: queue.SimpleQueue[str | Order] = queue.SimpleQueue()
        self._pause: str | None = None  # since when and by whom
        self._successor: Daemon | None = None
        self._started = self._next_health = self._next_log = time.monotonic()
        self._frames_at_health = 0
        self._fps: float | None = None

    @property
    def successor(self) -> "Daemon | None":
        """Who takes over after a reload."""
        return self._successor

    def stop(self, why: str) -> None:
        """Make ``run`` return; may be called from a signal handler or another thread."""
        self._wake.put(why)
        if self._successor is not None:
            self._successor.stop(why)

    def reload(self) -> None:
        """Read the settings again and make ``run`` return for the successor; with bad settings just go on."""
        self._wake.put(_RELOAD)

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
            threshold=self._inspect.verdict.threshold,
            camera=redact_url(self._settings.camera.url),
        )
        self._notifier.notify(STATUS="opening engine and camera")
        self._started = time.monotonic()
        self._next_health = self._started + self._settings.health.interval
        self._next_log = self._started + LOG_EVERY
        self._capture.start()
        self._publisher.close_left_open()
        self._publisher.start()
        self._recent.start()
        self._metrics.start()
        self._inspect.start()
        return self._shut_down(self._watch_over())

    # --- the main thread ---

    def _watch_over(self) -> str:
        why = None
        while why is None:
            with suppress(queue.Empty):
                why = self._obey(self._wake.get(timeout=TICK))
            self._look()  # also at the end: a short folder may be over before the first look
        return why

    def _obey(self, wish: str | Order) -> str | None:
        """Carry out what is wished; returns why to stop, if so."""
        if isinstance(wish, Order):
            self._answer(self._control.execute(wish, self._handlers()))
        elif wish == _RELOAD:
            try:
                self._do_reload(Command(by="SIGHUP"))
            except CommandError as error:
                log.warning("not reloaded; going on as before", reason=str(error))
        else:
            return wish
        return _RELOAD if self._successor else None

    def _look(self) -> None:
        """See how the parts do; tell the broker and systemd."""
        now = time.monotonic()
        starved = self._capture.stats.fault
        fault = starved or self._camera.fault
        troubles = (fault, self._pause, self._state.outbox.trouble, self._publisher.refusal, self._thresholds.trouble)
        reasons = tuple(str(trouble) for trouble in troubles if trouble)
        if reasons or self._inspect.frames:
            self._report("degraded" if reasons else "online", reasons, now)
        self._supervision.feed(self._inspect.steps, now, starved=starved is not None)
        self._supervision.describe(self._describe, now)
        if now >= self._next_health:
            self._publisher.publish(self._health(now))
            self._next_health = now + self._settings.health.interval
        if now >= self._next_log:
            self._next_log = now + LOG_EVERY
            log.info("at work", **self._totals())

    def _report(self, state: State, reasons: tuple[str, ...], now: float) -> None:
        if self._supervision.report(state, reasons, now):
            self._publish_info()

    def _publish_info(self) -> None:
        if (engine := self._inspect.engine) is not None:
            last = self._inspect.last
            size = last[0].image.shape[:2] if last else None
            self._publisher.publish(
                info_message(self._settings, self._bundle, engine, self._inspect.verdict, self._session, size)
            )

    def _describe(self) -> str:
        broker, inspect = self._publisher.connection, self._inspect
        score = self._last_score()
        return "; ".join(
            (
                ", ".join((self._supervision.state or inspect.building or "starting", *self._supervision.reasons)),
                f"{inspect.frames} frames",
                f"last score {'-' if score is None else f'{score:.4g}'} of {inspect.verdict.threshold:.4g}",
                "broker connected" if broker.connected else f"no broker ({broker.problem or 'connecting'})",
            )
        )

    def _totals(self) -> dict[str, object]:
        return {
            "inspected": self._inspect.frames,
            "anomalous": self._inspect.anomalous,
            "reconnects": self._capture.stats.reconnects,
            "broker": self._publisher.connection.connected,
            "dropped": self._dropped(),
            "queued": self._queued(),
        }

    def _shut_down(self, why: str) -> bool:
        deadline = time.monotonic() + STOP_SECONDS
        log.info("stopping", why=why)
        if self._successor is None:
            self._notifier.notify(STOPPING=1, STATUS=f"stopping: {why}")
        self._capture.stop(timeout=0.2)
        self._inspect.stop(timeout=0.6)
        self._recent.stop(timeout=0.1)
        self._metrics.stop()
        if self._inspect.failure is not None:
            self._publisher.close(None, timeout=1.0)
            raise self._inspect.failure
        with suppress(queue.Empty):
            while True:
                wish = self._wake.get_nowait()
                if isinstance(wish, Order):
                    self._answer(self._control.execute(wish, {}))
                elif self._successor is not None and wish not in (_END, _FAILED, _RELOAD):
                    self._successor.stop(wish)
        at_end = why == _END
        if at_end and not self._publisher.drain(DRAIN_SECONDS):
            log.warning("the broker does not take what is left", problem=self._publisher.connection.problem)
        totals = self._totals()
        last = Status(state="stopped", session=self._session)
        if self._successor is not None:
            last = Status(state="degraded", reasons=("reloading: back in a moment",), session=self._session)
        left = self._publisher.close(last, timeout=1.0 if at_end else deadline - time.monotonic())
        if left:
            log.warning("alerts and pictures wait for the next start: the broker did not take them", left=left)
        log.info("stopped", **totals)
        return not (at_end and left)

    # --- commands ---

    def _on_command(self, message: mqtt.MQTTMessage) -> None:
        """In the network thread."""
        found = self._control.receive(message)
        if isinstance(found, Order):
            self._wake.put(found)
        elif found is not None:
            self._answer(found)

    def _answer(self, answer: Answer) -> None:
        self._publisher.publish_reply(answer.reply, answer.response_topic, answer.correlation_data)

    def _handlers(self) -> dict[Verb, Handler]:
        return {
            "pause": self._do_pause,
            "resume": self._do_resume,
            "snapshot": self._do_snapshot,
            "set-threshold": self._do_set_threshold,
            "reload": self._do_reload,
        }

    def _do_pause(self, command: Command) -> Result:
        if self._pause is None:
            self._pause = f"paused: by {command.by or 'a command'} since {utc_now():%Y-%m-%d %H:%M:%S} UTC"
            self._inspect.paused = True
        return {"state": self._pause}

    def _do_resume(self, _command: Command) -> Result:
        self._pause, self._inspect.paused = None, False
        return {}

    def _do_snapshot(self, _command: Command) -> Result:
        if self._inspect.last is None:
            raise CommandError("no-frame: no frame has come from the camera yet")
        (frame, inspection), threshold = self._inspect.last, self._inspect.verdict.threshold
        picture = frame.image
        if inspection is not None:
            boxes = tuple(region.box for region in find_regions(inspection, threshold))
            picture = draw(frame.image, inspection, threshold, boxes)
        alerts = self._settings.alerts
        topic = snapshot_topic(f"{frame.captured_at:%Y%m%d-%H%M%S}-{frame.seq}")
        self._publisher.publish_volatile_image(topic, encode_jpeg(picture, alerts.image_max_side, alerts.image_quality))
        return {
            "image_topic": f"{self._settings.topic_prefix}/{topic}",
            "frame": frame.seq,
            "captured_at": frame.captured_at.isoformat(),
            "score": inspection.score if inspection else None,
            "threshold": threshold,
        }

    def _do_set_threshold(self, command: Command) -> Result:
        if not isinstance(command, SetThreshold):
            raise TypeError("Control gives set-threshold its own model")
        before = self._inspect.verdict
        self._thresholds.set(command.threshold, command.by)
        self._inspect.verdict = replace(before, threshold=command.threshold)
        log.warning("threshold set", threshold=command.threshold, was=before.threshold, by=command.by)
        self._publish_info()
        return {"threshold": command.threshold, "was": before.threshold}

    def _do_reload(self, command: Command) -> Result:
        try:
            settings = self._reread()
            if settings.state_folder != self._state.folder:
                raise CommandError("reload-refused: another state folder needs a restart")
            self._successor = Daemon(settings, self._notifier, self._state, self._reread)
        except (SettingsError, EngineError, CalibrationError, CameraError) as error:
            raise CommandError(f"reload-refused: {error}") from error
        log.info("reloading", by=command.by)
        same_rules = settings.commands == self._settings.commands
        self._successor.take_over(self._pause, self._control if same_rules else None)
        return {}

    def take_over(self, pause: str | None, control: Control | None) -> None:
        """Go on where another daemon left off.

        Args:
            pause: since when and by whom inspection is paused; None: it is not.
            control: knows which commands were carried out; None to start without that knowledge.
        """
        self._pause, self._inspect.paused = pause, pause is not None
        self._control = control or self._control

    # --- figures ---

    def _last_score(self) -> float | None:
        last = self._inspect.last
        return last[1].score if last and last[1] else None

    def _dropped(self) -> dict[str, int]:
        return {"frames": self._capture.stats.dropped, **self._publisher.dropped}

    def _queued(self) -> dict[str, int]:
        return {"frames": self._capture.stats.waiting, **self._publisher.queued}

    def _camera_health(self) -> CameraHealth:
        stats, reading = self._capture.stats, self._camera.reading
        fault = stats.fault or self._camera.fault
        return CameraHealth(
            connected=stats.connected,
            fault=str(fault) if fault else None,
            frames=stats.frames,
            reconnects=stats.reconnects,
            fps=self._fps,
            brightness=reading.brightness if reading else None,
            sharpness=reading.sharpness if reading else None,
            noise=reading.noise if reading else None,
        )

    def _health(self, now: float) -> Health:
        frames, elapsed = self._capture.stats.frames, now - self._next_health + self._settings.health.interval
        self._fps = round((frames - self._frames_at_health) / elapsed, 3) if elapsed > 0 else None
        self._frames_at_health = frames
        minor = (self._drift.reason(), self._recent.trouble, self._metrics.trouble)
        return Health(
            session=self._session,
            state=self._supervision.state,
            reasons=(*self._supervision.reasons, *(trouble for trouble in minor if trouble)),
            uptime_s=round(now - self._started, 3),
            inspected=self._inspect.frames,
            camera=self._camera_health(),
            drift=self._drift.health(),
            stages_ms=self._stages.summary(),
            queued=self._queued(),
            dropped=self._dropped(),
            temperatures_c=temperatures(),
            resident_bytes=resident_bytes(),
        )

    def _figures(self) -> Figures:
        """For Prometheus, in the threads of its server."""
        return Figures(
            state=self._supervision.state,
            inspected=self._inspect.frames,
            alerts=self._inspect.alerts,
            score=self._last_score(),
            threshold=self._inspect.verdict.threshold,
            camera=self._camera_health(),
            drift=self._drift.health(),
            queued=self._queued(),
            dropped=self._dropped(),
            broker_connected=self._publisher.connection.connected,
            temperatures_c=temperatures(),
        )


def run(settings: Settings, reread: Callable[[], Settings]) -> bool:
    """Run a station until its source is over, SIGTERM or SIGINT; SIGHUP reloads. From the main thread only.

    Args:
        settings: of the station.
        reread: the settings as they are now, for a reload.

    Returns:
        See ``Daemon.run``.

    Raises:
        SettingsError, StateError, CalibrationError, CameraError, EngineError: in words for the user.
    """
    notifier = systemd.from_environment()
    with StateFolder(settings.state_folder, settings.outbox) as state:
        daemon = Daemon(settings, notifier, state, reread)

        def stop(number: int, _frame: FrameType | None) -> None:
            daemon.stop(signal.Signals(number).name)

        def reload(_number: int, _frame: FrameType | None) -> None:
            daemon.reload()

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            while True:
                delivered = daemon.run()
                if daemon.successor is None:
                    return delivered
                daemon = daemon.successor
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
