"""Stations that do not exist: what they would say over MQTT, with pictures. A double, for tests of what shows it.

The surfaces are the CC0 photographs of scikit-image with the demo's defects on them. The "detector" knows where it
planted them, so its heatmaps are better than any model's; messages, pictures and answers are of the real kinds.
"""

import importlib.util
import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from engines.defects import KINDS, make_defect
from engines.geometry import Box
from engines.manifest import Preprocessing
from engines.pictures import encode_jpeg, encode_png
from engines.tiling import Tiler
from station.frames import Inspection
from station.heatmap import draw
from station.messages import (
    MAX_PATCHES,
    Alert,
    CameraHealth,
    DriftHealth,
    Health,
    Info,
    Message,
    Rectangle,
    Reply,
    Score,
    ScoredPatch,
    StageTimes,
    Status,
    alert_frame_topic,
    alert_image_topic,
    snapshot_topic,
)
from tests.support.mosquitto import Client

PREFIX = "station/v1"
WIDTH, HEIGHT, PATCH = 384, 288, 48
THRESHOLD = 40.0
_TEXTURES = ("brick.png", "gravel.png", "grass.png")


def paths(count: int) -> list[str]:
    """``site/line/name`` of so many stations."""
    return [f"north-mill/line-{at // 4 + 1}/cam-{at + 1:02}" for at in range(count)]


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


@dataclass(frozen=True)
class Look:
    """What a camera sees, and what inspecting it gives.

    Attributes:
        frame: uint8 (288, 384, 3), BGR.
        boxes: of the defect; none on a good frame.
    """

    frame: np.ndarray
    inspection: Inspection
    boxes: tuple[Box, ...]

    @property
    def jpeg(self) -> bytes:
        return encode_jpeg(draw(self.frame, self.inspection, THRESHOLD, self.boxes), 1280, 80)

    @property
    def patches(self) -> tuple[ScoredPatch, ...]:
        scores = self.inspection.patch_scores
        order = np.argsort(scores)[::-1][:MAX_PATCHES]
        boxes = [self.inspection.grid.box(int(at)) for at in order]
        return tuple(
            ScoredPatch(x=b.x, y=b.y, w=b.w, h=b.h, score=round(float(scores[at]), 2))
            for b, at in zip(boxes, order, strict=True)
            if scores[at] > 0.05 * scores.max()
        )


def surface(texture: int, seed: int) -> np.ndarray:
    """float32 (288, 384), a piece of a photograph, in slightly other light for each seed."""
    spec = importlib.util.find_spec("skimage")
    assert spec
    assert spec.origin
    photograph = cv2.imread(str(Path(spec.origin).parent / "data" / _TEXTURES[texture % 3]), cv2.IMREAD_GRAYSCALE)
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, 512 - HEIGHT), rng.integers(0, 512 - WIDTH)
    piece = photograph[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
    return piece * (0.85 + 0.3 * rng.random()) + 8


def look(texture: int, seed: int, *, defective: bool) -> Look:
    """A frame of a texture, with one of the demo's five defects on it or without."""
    rng = np.random.default_rng([seed, 7])
    good = surface(texture, seed)
    bad, boxes = good.copy(), ()
    if defective:
        defect = make_defect(KINDS[seed % len(KINDS)], rng)
        h, w = defect.shade.shape
        y, x = int(rng.integers(8, HEIGHT - h - 8)), int(rng.integers(8, WIDTH - w - 8))
        bad[y : y + h, x : x + w] = defect.applied(bad[y : y + h, x : x + w])
        boxes = (Box(x, y, w, h),)
    tint = np.array([(0.82, 0.93, 1.0), (0.96, 1.0, 1.0), (0.80, 1.0, 0.86)][texture % 3], np.float32)
    frame = np.clip(bad[..., None] * tint + rng.normal(0, 2, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8)
    grid = Tiler(Preprocessing(colour="gray", patch_size=PATCH, stride=PATCH // 2)).grid((HEIGHT, WIDTH))
    heat = np.abs(bad - good) + np.abs(rng.normal(0, 1.5, (HEIGHT, WIDTH)))
    scores = np.array([heat[y : y + PATCH, x : x + PATCH].mean() for y, x in grid.origins], np.float32) * 6
    inspection = Inspection(float(scores.max()) * 2, scores, heat.astype(np.float32), grid, {})
    return Look(frame, inspection, boxes)


@dataclass
class Simulated:
    """One station that does not exist."""

    path: str
    number: int
    state: str = "online"
    reasons: tuple[str, ...] = ()
    threshold: float = THRESHOLD
    drift: bool = False
    frames: int = 0
    started: float = field(default_factory=time.time)
    open: Alert | None = None
    scene: Look | None = None

    @property
    def texture(self) -> int:
        return (self.number // 4) % 3


class Plant(Client):
    """``with Plant(broker.port, paths(20)) as plant:`` — they log in, tell how they are, and obey commands.

    Scores come only from ``score`` or, ten a second of each that is online, from ``run``.
    """

    def __init__(self, port: int, stations: Iterable[str]) -> None:
        self.stations = {path: Simulated(path, number) for number, path in enumerate(stations)}
        self.commands: list[tuple[str, str, bytes]] = []
        self._sequence = 0
        self._port = port
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._obey

    # --- what they say ---

    def say(self, path: str, message: Message, topic: str | None = None) -> None:
        with self._lock:
            self._sequence += 1
            message = message.model_copy(update={"seq": self._sequence})
        topic = topic or f"{PREFIX}/{path}/{message.topic}"
        self._client.publish(topic, message.payload(), message.qos, message.retain)

    def picture(self, path: str, topic: str, data: bytes) -> None:
        self._client.publish(f"{PREFIX}/{path}/{topic}", data, 1)

    def tell_status(self, path: str, state: str, *reasons: str) -> None:
        one = self.stations[path]
        one.state, one.reasons = state, reasons
        self.say(path, Status(state=state, reasons=reasons, session="simulated"))

    def tell_info(self, path: str) -> None:
        one = self.stations[path]
        self.say(
            path,
            Info(
                session="simulated",
                version="0.5.0",
                bundle_name=("brick", "gravel", "turf")[one.texture],
                bundle_sha256=f"{one.number + 1:02x}" * 32,
                engine_backend="onnxruntime",
                engine_device="cpu",
                engine_precision="float32",
                threshold=one.threshold,
                calibrated_at=_utc(one.started - 86_400 * 3),
                camera_url=f"rtsp://camera-{one.number + 1}.mill/stream",
                frame_width=WIDTH,
                frame_height=HEIGHT,
            ),
        )

    def tell_health(self, path: str) -> None:
        one = self.stations[path]
        fault = next((reason for reason in one.reasons if reason.startswith("camera-")), None)
        drift = ("scores-drift: scores are higher than those of the calibration",) if one.drift else ()
        self.say(
            path,
            Health(
                session="simulated",
                state=one.state if one.state in ("online", "degraded") else None,
                reasons=(*one.reasons, *drift),
                uptime_s=93_784 + time.time() - one.started,
                inspected=930_000 + one.frames,
                camera=CameraHealth(
                    connected=fault is None,
                    fault=fault,
                    frames=930_012 + one.frames,
                    reconnects=1,
                    fps=10.0,
                    brightness=121.3,
                    sharpness=0.98,
                    noise=1.2,
                ),
                drift=DriftHealth(
                    state="drift" if one.drift else "stable",
                    direction="higher" if one.drift else None,
                    effect=0.81 if one.drift else 0.51,
                    p_value=0.001 if one.drift else 0.4,
                    frames=500,
                ),
                stages_ms={"infer": StageTimes(p50=21, p99=34), "total": StageTimes(p50=26, p99=48)},
                queued={"frames": 0, "scores": 0, "outbox": 0, "outbox_bytes": 0},
                dropped={"frames": 12 * (one.number % 2), "scores": 0, "alerts": 0, "images": 0},
                temperatures_c={"cpu": 58.5},
                resident_bytes=312 * 2**20,
            ),
        )

    def score(self, path: str, value: float | None = None) -> None:
        """A score; without a value one as a good surface gives it."""
        one = self.stations[path]
        one.frames += 1
        if value is None:
            rng = np.random.default_rng([one.number, one.frames])
            value = 17 + 3 * math.sin(one.frames / 60 + one.number) + 5 * one.drift + float(rng.gamma(2, 1.6))
        self.say(
            path,
            Score(
                frame=one.frames,
                captured_at=_utc(time.time()),
                score=value,
                threshold=one.threshold,
                anomalous=value > one.threshold,
                latency_ms={"total": 26.0},
            ),
        )

    def alert(self, path: str, seed: int, *, opened: float | None = None, image: bool = True) -> str:
        """A defect passes: alert and picture; its id."""
        one = self.stations[path]
        scene = one.scene = look(one.texture, seed, defective=True)
        at = _utc(time.time() if opened is None else opened)
        id_ = f"{at:%Y%m%d-%H%M%S}{at.microsecond // 1000:03}-{seed:04}"
        peak = round(max(scene.inspection.score, 1.1 * one.threshold), 2)
        topic = f"{PREFIX}/{path}/{alert_image_topic(id_)}"
        one.open = Alert(
            event="open",
            id=id_,
            dedupe_key=f"{id_}/open",
            at=at,
            opened_at=at,
            first_frame=one.frames,
            last_frame=one.frames,
            score=peak,
            peak_score=peak,
            threshold=one.threshold,
            boxes=tuple(Rectangle(x=b.x, y=b.y, w=b.w, h=b.h) for b in scene.boxes),
            frame_width=WIDTH,
            frame_height=HEIGHT,
            image_topic=topic if image else None,
            patches=scene.patches,
        )
        self.say(path, one.open)
        if image:
            self.picture(path, alert_image_topic(id_), scene.jpeg)
        return id_

    def close(self, path: str, *, after: float = 1.4, frame: bool = True) -> None:
        """The alert that is open ends."""
        one = self.stations[path]
        assert one.open
        assert one.scene
        alert = one.open
        told = {
            "event": "close",
            "dedupe_key": f"{alert.id}/close",
            "at": alert.opened_at + timedelta(seconds=after),
            "last_frame": alert.first_frame + int(10 * after),
            "patches": (),
            "frame_topic": f"{PREFIX}/{path}/{alert_frame_topic(alert.id)}" if frame else None,
        }
        self.say(path, alert.model_copy(update=told))
        if frame:
            self.picture(path, alert_frame_topic(alert.id), encode_png(one.scene.frame))
        one.open = None

    def run(self, seconds: float | None = None, *, per_second: float = 10, health: float = 5) -> None:
        """Scores and health of all, in a thread of its own, until the end or for so long."""

        def talk() -> None:
            start = time.monotonic()
            next_health = start
            tick = 0
            while not self._ended.is_set() and (seconds is None or time.monotonic() - start < seconds):
                for path, one in list(self.stations.items()):
                    if one.state == "online":
                        self.score(path)
                if time.monotonic() >= next_health:
                    next_health += health
                    for path, one in list(self.stations.items()):
                        if one.state in ("online", "degraded"):
                            self.tell_health(path)
                tick += 1
                self._ended.wait(max(0.0, start + tick / per_second - time.monotonic()))

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        self._threads.append(thread)

    # --- what they are told ---

    def _obey(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        *_, site, line, name, _cmd, verb = message.topic.split("/")
        path = f"{site}/{line}/{name}"
        self.commands.append((path, verb, message.payload))
        one = self.stations[path]
        result: dict[str, str | float | None] = {}
        if verb == "pause":
            self.tell_status(path, "degraded", "paused: by somebody")
        elif verb == "resume":
            self.tell_status(path, "online")
        elif verb == "snapshot":
            scene = one.scene if one.open and one.scene else look(one.texture, one.number, defective=False)
            self.picture(path, snapshot_topic(f"s{len(self.commands)}"), scene.jpeg)
        response = getattr(message.properties, "ResponseTopic", None)
        properties = Properties(PacketTypes.PUBLISH)
        if correlation := getattr(message.properties, "CorrelationData", None):
            properties.CorrelationData = correlation
        reply = Reply(verb=verb, ok=True, result=result, seq=1)
        self._client.publish(response or f"{PREFIX}/{path}/reply/{verb}", reply.payload(), 1, properties=properties)

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        for path, one in self.stations.items():
            self.tell_status(path, one.state, *one.reasons)
            self.tell_info(path)
        client.subscribe(f"{PREFIX}/+/+/+/cmd/+", 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        super().__exit__(kind, error, trace)


def something_of_everything(plant: Plant) -> None:
    """A line with good and bad news: faults, drift, a pause, alerts of the last hour, two of them open."""
    names = list(plant.stations)
    plant.tell_status(names[5], "degraded", "camera-blurred: sharpness 0.31 of 0.9 to 1.2; look at the lens")
    plant.tell_status(names[9], "offline")
    plant.tell_status(names[14], "degraded", "paused: by ann since 2026-01-15 13:02:11 UTC")
    plant.stations[names[3]].drift = True
    now = time.time()
    for at, seed in enumerate(range(1, 13)):
        path = names[(5 * seed + 3) % len(names)]
        plant.alert(path, seed, opened=now - 3000 + 230 * at)
        plant.close(path)
    plant.alert(names[0], 22, opened=now - 95)
    plant.alert(names[6], 15, opened=now - 12)
