"""The Prometheus endpoint. It has no log-in: it listens on this machine alone unless told otherwise.

What happens per frame is counted here as it happens (``observe``); everything else is asked of the daemon when
Prometheus asks us.
"""

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from socketserver import TCPServer
from typing import Literal
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from station.messages import CameraHealth, DriftHealth
from station.settings import MetricsSettings

log = structlog.get_logger(__name__)

PATIENCE = 10.0
"""Seconds that a client may be silent before it is hung up on; one that never speaks would keep a thread."""
POLL = 0.1
"""Seconds that stopping may take."""
STAGE_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SCORE_RATIOS = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0)
"""Buckets; scores have no unit and a range of their own for every bundle, so their histogram is in thresholds."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The daemon's figures of this moment. Totals count since it started.

    Attributes:
        state: as on ``status``; None while starting.
        inspected: frames, total.
        alerts: opened, total.
        score: of the last frame; None before the first.
        threshold: that frames are judged by.
        camera: as in ``health``.
        drift: as in ``health``.
        queued: waiting now, as in ``health``: frames, scores, outbox (messages), outbox_bytes.
        dropped: totals, as in ``health``: frames, scores, alerts, images.
        broker_connected: the publisher is logged in.
        temperatures_c: by thermal zone.
    """

    state: Literal["online", "degraded"] | None
    inspected: int
    alerts: int
    score: float | None
    threshold: float
    camera: CameraHealth
    drift: DriftHealth
    queued: Mapping[str, int]
    dropped: Mapping[str, int]
    broker_connected: bool
    temperatures_c: Mapping[str, float]


class MetricsServer:
    """Serves ``/metrics`` where ``metrics.port`` is set; without it every call does nothing."""

    def __init__(self, settings: MetricsSettings, figures: Callable[[], Figures], build: Mapping[str, str]) -> None:
        """Nothing listens yet.

        Args:
            settings: ``port`` and ``host``.
            figures: called by the server's threads whenever Prometheus asks.
            build: labels of ``station_build_info``: version, bundle, …
        """
        self._settings = settings
        self._registry = CollectorRegistry()
        self._registry.register(_FromFigures(figures, build))
        ProcessCollector(registry=self._registry)  # resident memory, CPU seconds, open files, start time
        self._stages = Histogram(
            "station_stage_duration_seconds",
            "How long a stage took.",
            ["stage"],
            buckets=STAGE_SECONDS,
            registry=self._registry,
        )
        self._ratios = Histogram(
            "station_score_threshold_ratio",
            "Frame scores, as multiples of the threshold.",
            buckets=SCORE_RATIOS,
            registry=self._registry,
        )
        self._server: ThreadingWSGIServer | None = None
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why nothing is served though it should be, ``code: words``."""
        return self._trouble

    @property
    def port(self) -> int | None:
        """Where it listens; None: nowhere."""
        return self._server.server_port if self._server else None

    def start(self) -> None:
        """Listen; a port that is taken is a trouble and no error."""
        host, port = self._settings.host, self._settings.port
        if port is None:
            return
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            kind = _Server6 if family == socket.AF_INET6 else _Server
            server = make_server(host, port, make_wsgi_app(self._registry), kind, _Handler)
        except OSError as error:
            words = error.strerror or str(error)
            self._trouble = f"metrics-port: {words.lower()} ({host} port {port}): no metrics are served"
            log.warning("no metrics are served", host=host, port=port, problem=words)
            return
        self._server = server
        threading.Thread(target=server.serve_forever, args=(POLL,), name="metrics", daemon=True).start()
        log.info("metrics are served", host=host, port=server.server_port)

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def observe(self, score: float, threshold: float, ms: Mapping[str, float]) -> None:
        """Count one frame: its score, and its milliseconds by stage."""
        if self._server is None:
            return
        self._ratios.observe(score / threshold)
        for stage, value in ms.items():
            self._stages.labels(stage).observe(value / 1e3)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """A line in the log for every scrape would bury the rest."""


class _Server(ThreadingWSGIServer):
    def server_bind(self) -> None:
        """As the base class, without its look-up of our own name, which waits where no DNS answers."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that hangs up is no event; ``socketserver`` would print a traceback."""
        log.debug("metrics request failed", error=repr(sys.exc_info()[1]))


class _Server6(_Server):
    address_family = socket.AF_INET6


class _FromFigures(Collector):
    """Turns the daemon's figures into metrics at the moment of asking."""

    def __init__(self, figures: Callable[[], Figures], build: Mapping[str, str]) -> None:
        self._figures = figures
        self._build = build

    def describe(self) -> Iterator[Metric]:
        """Nothing: the daemon need not be there yet when this is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        figures = self._figures()
        camera, drift = figures.camera, figures.drift
        yield InfoMetricFamily("station_build", "What runs here.", dict(self._build))
        yield _gauge("station_state", "1: the state that the station is in.", "state", _one_of(figures.state, _STATES))
        yield CounterMetricFamily("station_frames_read", "Frames that the camera gave.", camera.frames)
        yield CounterMetricFamily("station_frames_inspected", "Frames inspected.", figures.inspected)
        yield CounterMetricFamily("station_alerts_opened", "Alerts opened.", figures.alerts)
        # None is a metric without a value: it is known that there is one, and it is not 0.
        yield GaugeMetricFamily("station_score", "Score of the last frame.", figures.score)
        yield GaugeMetricFamily("station_threshold", "Frames that score above it are anomalous.", figures.threshold)
        waiting = {kind: count for kind, count in figures.queued.items() if kind != "outbox_bytes"}
        yield _gauge("station_queued", "Frames and messages that wait.", "kind", waiting)
        if "outbox_bytes" in figures.queued:
            yield GaugeMetricFamily("station_outbox_bytes", "Size of the outbox.", figures.queued["outbox_bytes"])
        dropped = CounterMetricFamily("station_dropped", "Frames and messages lost.", labels=["kind"])
        for kind, count in figures.dropped.items():
            dropped.add_metric([kind], count)
        yield dropped
        yield GaugeMetricFamily("station_camera_connected", "1: the camera is open.", float(camera.connected))
        code = camera.fault.partition(":")[0] if camera.fault else None
        yield _gauge("station_camera_fault", "1: what is wrong with the camera.", "code", {code: 1.0} if code else {})
        yield CounterMetricFamily("station_camera_reconnects", "How often the camera came back.", camera.reconnects)
        for name, value, about in (
            ("brightness", camera.brightness, "Mean grey value of the last frame, 0 to 255."),
            ("sharpness", camera.sharpness, "Of the last frame."),
            ("noise", camera.noise, "Of the last frame, grey values."),
        ):
            yield GaugeMetricFamily(f"station_camera_{name}", about, value)
        directions = _one_of(drift.direction, ("higher", "lower", "wider"))
        yield _gauge("station_drift", "1: where the scores have gone.", "direction", directions)
        yield GaugeMetricFamily(
            "station_drift_effect", "Probability that a late frame outscores a calibration frame.", drift.effect
        )
        yield GaugeMetricFamily("station_broker_connected", "1: logged in.", float(figures.broker_connected))
        yield _gauge("station_temperature_celsius", "By thermal zone.", "zone", figures.temperatures_c)


_STATES = ("online", "degraded")


def _one_of(present: str | None, all_of: tuple[str, ...]) -> dict[str, float]:
    return {name: float(name == present) for name in all_of}


def _gauge(name: str, about: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
