"""The inspect threads on a scripted camera, with a real engine, tracker, publisher and outbox around them."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engines.bundle import Bundle, read_bundle
from engines.engine import EngineSettings
from engines.errors import BackendError
from engines.judging import Judging
from engines.opening import open_engine
from station import alert_writer
from station.camera import CameraError, Capture, Picture
from station.frames import Frame
from station.health.camera import CameraWatch
from station.health.drift import DriftWatch
from station.health.metrics import MetricsServer
from station.health.vitals import StageWindow
from station.inspecting import InspectThread, Surroundings
from station.inspection import Inspector, Prepared, Scored
from station.judge import AlertEvent, AlertTracker
from station.messages import Alert, Score
from station.outbox import Outbox
from station.publisher import Publisher
from station.recent import RecentFrames
from station.settings import AlertSettings, CameraSettings, HealthSettings, JudgeSettings, Settings
from station.verdict import make_tiler, read_verdict
from tests.support.bundles import GREY, make_bundle

PATIENCE = 20  # seconds until a test gives up waiting
THRESHOLD = 40.0
GOOD, LEFT, RIGHT, BLACK, TINY = "good", "left", "right", "black", "tiny"
"""What a frame shows: nothing, a defect at one side or the other, nothing at all; or less than a patch."""


def picture(kind: str, number: int) -> Picture:
    if kind == BLACK:
        return Picture(np.zeros((64, 256, 3), np.uint8), f"frame {number}")
    if kind == TINY:
        return Picture(np.full((8, 8, 3), GREY, np.uint8), f"frame {number}")
    image = np.full((64, 256, 3), GREY, np.uint8)
    if kind != GOOD:
        # Stronger from frame to frame, so that there are updates with new pictures as well.
        x = 8 if kind == LEFT else 200
        image[8:24, x : x + 16] = max(100 - 5 * number, 0)
    return Picture(image, f"frame {number}")


class Film:
    """A test double of a camera: these frames and then the end; or, live, as many as the test releases."""

    def __init__(self, kinds: list[str], *, live: bool = False) -> None:
        self.live = live
        self.released = threading.Semaphore(0)
        self._kinds = kinds
        self._number = 0

    def open(self) -> None:
        self._number = 0

    def read(self) -> Picture | None:
        if self._number == len(self._kinds):
            return None
        if self.live:
            self.released.acquire()
        self._number += 1
        return picture(self._kinds[self._number - 1], self._number)

    def close(self) -> None:
        pass


class RecordingPublisher(Publisher):
    """The real one, which also remembers what it was given, in order."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.taken: list[Score | Alert] = []
        self.pictures: list[tuple[bool, bool]] = []
        self.changed = threading.Condition()

    def publish(self, message):
        return self._note(super().publish(message))

    def publish_alert(self, alert, jpeg=None, png=None):
        self.pictures.append((jpeg is not None, png is not None))
        return self._note(super().publish_alert(alert, jpeg, png))

    def _note(self, message):
        with self.changed:
            self.taken.append(message)
            self.changed.notify_all()
        return message

    def scores(self) -> list[int]:
        return [message.frame for message in list(self.taken) if isinstance(message, Score)]

    def alerts(self) -> list[str]:
        return [message.dedupe_key for message in list(self.taken) if isinstance(message, Alert)]

    def wait_for_score(self, frame: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: frame in self.scores(), PATIENCE), self.scores()


class Plant:
    """An inspect thread and what is around it."""

    def __init__(self, folder: Path, film: Film, policy: str = "auto") -> None:
        self.bundle = bundle_at(folder / "bundle")
        self.settings = Settings(
            bundle=folder / "bundle",
            camera=CameraSettings(url="rtsp://nowhere/1" if film.live else "file:none", policy=policy),
            judge=JudgeSettings(threshold=THRESHOLD),
            alerts=AlertSettings(close_after=2, same_defect_distance=0.1),
            health=HealthSettings(recover_after=0, recent_mib=0),
            engine=EngineSettings(backend="onnxruntime", threads=1),
        )
        self.capture = Capture(self.settings.camera, source=film)
        self.outbox = Outbox(None, self.settings.outbox)
        self.publisher = RecordingPublisher(self.settings.mqtt, "prefix", "client", "session", self.outbox)
        self.ended = threading.Event()
        self.firsts: list[list[int]] = []  # scores published when on_first was called
        self.inspect = InspectThread(
            self.settings,
            self.bundle,
            read_verdict(self.settings, self.bundle),
            Surroundings(
                self.capture,
                self.publisher,
                CameraWatch(None, self.settings.health),
                DriftWatch(None, self.settings.health),
                StageWindow(),
                RecentFrames(folder / "recent", self.settings.health),
                MetricsServer(self.settings.metrics, lambda: pytest.fail("nobody asks"), {}),
            ),
            on_first=lambda: self.firsts.append(self.publisher.scores()),
            on_end=self.ended.set,
        )

    def start(self) -> "Plant":
        self.capture.start()
        self.inspect.start()
        return self

    def run(self) -> "Plant":
        self.start()
        assert self.ended.wait(PATIENCE)
        self.stop()
        return self

    def stop(self) -> None:
        self.capture.stop(PATIENCE)
        self.inspect.stop(PATIENCE)
        assert not self.inspect._thread.is_alive()
        self.outbox.close()


def bundle_at(path: Path) -> Bundle:
    return read_bundle(path) if path.exists() else make_bundle(path)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Gate:
    """Put before a function: from a call on it waits there until the test opens the gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, at: int = 1) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._function = getattr(owner, name)
        self._calls, self._at = 0, at
        gate = self

        def gated(*arguments: object, **more: object) -> object:
            gate._calls += 1
            if gate._calls >= gate._at:
                gate.reached.set()
                assert gate._open.wait(PATIENCE)
            return gate._function(*arguments, **more)

        monkeypatch.setattr(owner, name, gated)

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Gate]]:
    gates: list[Gate] = []

    def make(owner: object, name: str, at: int = 1) -> Gate:
        gates.append(Gate(monkeypatch, owner, name, at))
        return gates[-1]

    yield make
    for made in gates:
        made.open()


def one_after_the_other(plant: Plant, kinds: list[str]) -> tuple[list[int], list[str], list[tuple[bool, bool]]]:
    """What a plain loop would publish: frames with scores, keys of alerts, and which of these have which pictures."""
    watch = CameraWatch(None, plant.settings.health)
    tracker = AlertTracker(plant.settings.alerts, THRESHOLD)
    engine = open_engine(plant.bundle, plant.settings.engine)
    inspector = Inspector(
        engine, make_tiler(plant.settings, plant.bundle), Judging.of(plant.bundle.manifest), plant.settings.judge
    )
    scores: list[int] = []
    events: list[AlertEvent] = []
    for number, kind in enumerate(kinds, start=1):
        shown = picture(kind, number)
        frame = Frame(number, shown.image, plant.bundle.manifest.created_at, time.monotonic(), shown.name)
        if watch.check(frame) is None:
            scores.append(number)
            events += tracker.update(frame, inspector.inspect(frame.image))
        else:
            events += tracker.flush()
    events += tracker.flush()
    engine.close()
    keys = [f"{event.id.rpartition('-')[2]}/{event.event}/{event.last_frame}" for event in events]
    return scores, keys, [(event.new_peak, event.event == "close") for event in events]


def shortened(keys: list[str]) -> list[str]:
    """Without the time of the alert's first frame."""
    return [key.rpartition("-")[2] for key in keys]


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plant")


slow = st.sampled_from(["prepare", "infer", "judge", "draw", None])


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from([GOOD, LEFT, RIGHT, BLACK]), min_size=1, max_size=24), slow=slow)
def test_what_is_published_is_what_a_plain_loop_would_publish_whichever_stage_is_slow(
    shared_folder: Path, kinds: list[str], slow: str | None
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if slow is not None:
            owner = alert_writer if slow == "draw" else Inspector
            quick = getattr(owner, slow)

            def dawdle(*arguments: object) -> object:
                time.sleep(0.003)
                return quick(*arguments)

            monkeypatch.setattr(owner, slow, dawdle)
        plant = Plant(shared_folder, Film(kinds)).run()
    assert plant.inspect.failure is None
    scores, keys, pictures = one_after_the_other(plant, kinds)
    assert plant.publisher.scores() == scores
    assert shortened(plant.publisher.alerts()) == keys
    assert plant.publisher.pictures == pictures
    assert plant.inspect.steps == len(kinds)
    assert plant.inspect.frames == len(scores)
    assert plant.inspect.alerts == sum("open" in key for key in keys)
    assert plant.firsts == ([[]] if scores else [])
    assert plant.inspect.last is not None
    assert (plant.inspect.last[0].seq, plant.inspect.last[1] is None) == (len(kinds), kinds[-1] == BLACK)


def test_while_a_frame_is_scored_the_next_one_is_looked_at_and_the_one_before_is_published(
    tmp_path: Path, gate: Callable[..., Gate]
) -> None:
    engine, prepared = gate(Inspector, "infer", at=2), gate(Inspector, "prepare", at=3)
    plant = Plant(tmp_path, Film([GOOD] * 4)).start()
    engine.wait()
    prepared.wait()
    plant.publisher.wait_for_score(1)
    engine.open()
    prepared.open()
    assert plant.ended.wait(PATIENCE)
    plant.stop()
    assert plant.publisher.scores() == [1, 2, 3, 4]


def test_scores_do_not_wait_for_an_alerts_picture_and_alerts_keep_their_order(
    tmp_path: Path, gate: Callable[..., Gate]
) -> None:
    drawing = gate(alert_writer, "draw")
    plant = Plant(tmp_path, Film([GOOD, LEFT, *[GOOD] * 8])).start()
    drawing.wait()
    plant.publisher.wait_for_score(10)
    assert plant.publisher.alerts() == []
    assert (len(plant.outbox), plant.inspect.alerts) == (0, 0)
    drawing.open()
    assert plant.ended.wait(PATIENCE)
    plant.stop()
    assert shortened(plant.publisher.alerts()) == ["0001/open/2", "0001/close/2"]


def test_where_pictures_fall_behind_inspection_waits_and_no_alert_is_lost(
    tmp_path: Path, gate: Callable[..., Gate]
) -> None:
    drawing = gate(alert_writer, "draw")
    kinds = [LEFT, GOOD, RIGHT, GOOD, GOOD, *[LEFT, GOOD, GOOD] * 6]
    plant = Plant(tmp_path, Film(kinds)).start()
    drawing.wait()
    plant.publisher.wait_for_score(3)  # its two alerts are one too many
    # The fourth is scored and the fifth prepared, four wait in the capture, and the tenth cannot be handed over.
    wait_until(lambda: plant.capture.stats.frames == 10)
    assert not plant.ended.wait(0.3)
    assert plant.capture.stats.frames == 10
    assert plant.publisher.scores() == [1, 2, 3]
    drawing.open()
    assert plant.ended.wait(PATIENCE)
    plant.stop()
    scores, keys, pictures = one_after_the_other(plant, kinds)
    assert plant.publisher.scores() == scores
    assert shortened(plant.publisher.alerts()) == keys
    assert plant.publisher.pictures == pictures


def test_the_newest_frame_goes_to_the_engine_and_those_passed_over_are_counted(
    tmp_path: Path, gate: Callable[..., Gate]
) -> None:
    engine = gate(Inspector, "infer", at=2)
    film = Film([GOOD] * 40, live=True)
    plant = Plant(tmp_path, film)
    looked: list[int] = []
    check = plant.inspect._around.camera.check

    def noted(frame: Frame):
        looked.append(frame.seq)
        return check(frame)

    plant.inspect._around.camera.check = noted
    plant.start()
    film.released.release()
    plant.publisher.wait_for_score(1)
    plant.inspect._infer_seconds = 60.0  # as if the engine were slow
    film.released.release()
    engine.wait()
    for _ in range(30):
        film.released.release()
    wait_until(lambda: plant.capture.stats.frames == 32)
    assert looked[:2] == [1, 2]
    assert len(looked) <= 3, "frames grow old beside the engine"
    engine.open()
    plant.publisher.wait_for_score(32)
    stats = plant.capture.stats
    plant.stop()
    assert plant.inspect.failure is None
    assert plant.publisher.scores()[:2] == [1, 2]
    assert stats.frames - stats.dropped == len(looked) == len(plant.publisher.scores())


class BrokenError(BackendError):
    pass


@pytest.mark.parametrize(
    ("stage", "published"), [("check", 5), ("prepare", 5), ("infer", 5), ("judge", 5), ("update", 5)]
)
def test_a_failure_is_told_once_what_came_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, published: int
) -> None:
    owner = {"check": CameraWatch, "update": AlertTracker}.get(stage, Inspector)
    function, calls = getattr(owner, stage), iter(range(1, 100))

    def break_down(*arguments: object) -> object:
        if next(calls) == 6:
            raise BrokenError("out of memory")
        return function(*arguments)

    monkeypatch.setattr(owner, stage, break_down)
    plant = Plant(tmp_path, Film([GOOD, GOOD, LEFT, *[LEFT] * 20])).run()
    assert isinstance(plant.inspect.failure, BrokenError)
    assert plant.publisher.scores() == list(range(1, published + 1))
    alerts = shortened(plant.publisher.alerts())
    assert alerts[0] == "0001/open/3"
    assert alerts[-1] == "0001/close/5", "what was open is closed"


def test_scores_that_are_no_numbers_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infer, calls = Inspector.infer, iter(range(1, 100))

    def spoiled(self: Inspector, prepared: Prepared) -> Scored:
        scored = infer(self, prepared)
        if next(calls) == 3:
            scored.scores.reconstruction_error[0] = np.nan
        return scored

    monkeypatch.setattr(Inspector, "infer", spoiled)
    plant = Plant(tmp_path, Film([GOOD] * 10)).run()
    assert isinstance(plant.inspect.failure, BackendError)
    assert plant.publisher.scores() == [1, 2]


def test_a_frame_that_does_not_suit_the_model_comes_after_those_before_it(tmp_path: Path) -> None:
    plant = Plant(tmp_path, Film([GOOD, GOOD, TINY, GOOD])).run()
    assert isinstance(plant.inspect.failure, CameraError)
    assert "frame 3" in str(plant.inspect.failure)
    assert plant.publisher.scores() == [1, 2]


def test_a_picture_that_cannot_be_made_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("OpenCV could not encode")

    monkeypatch.setattr(alert_writer, "encode_jpeg", fail)
    plant = Plant(tmp_path, Film([GOOD, LEFT, GOOD], live=False)).run()
    assert isinstance(plant.inspect.failure, RuntimeError)


@pytest.mark.parametrize("stage", ["check", "infer", "judge", "draw"])
def test_a_stop_during_any_stage_closes_what_is_open(tmp_path: Path, gate: Callable[..., Gate], stage: str) -> None:
    owner = {"check": CameraWatch, "draw": alert_writer}.get(stage, Inspector)
    held = gate(owner, stage, at=1 if stage == "draw" else 5)
    plant = Plant(tmp_path, Film([GOOD, LEFT, *[GOOD, LEFT] * 20])).start()
    held.wait()
    if stage != "draw":
        plant.publisher.wait_for_score(2)
    stopping = threading.Thread(target=plant.stop)
    stopping.start()
    assert plant.inspect._stopping.wait(PATIENCE)
    held.open()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert plant.inspect.failure is None
    assert not plant.ended.is_set(), "the source is not over"
    scores = plant.publisher.scores()
    assert scores == list(range(1, len(scores) + 1))
    alerts = shortened(plant.publisher.alerts())
    assert alerts[0] == "0001/open/2"
    assert "/close/" in alerts[-1]
    assert sum("/open/" in key for key in alerts) == sum("/close/" in key for key in alerts)


def test_a_pause_closes_what_is_open_and_frames_are_still_taken(tmp_path: Path) -> None:
    film = Film([LEFT] * 60, live=True)
    plant = Plant(tmp_path, film, policy="every").start()
    for _ in range(3):
        film.released.release()
    plant.publisher.wait_for_score(3)
    plant.inspect.paused = True
    for _ in range(5):
        film.released.release()
    wait_until(lambda: plant.inspect.steps == 8)
    assert plant.inspect.last is not None
    assert plant.inspect.last[1] is None
    assert plant.publisher.scores() == [1, 2, 3]
    wait_until(lambda: "0001/close/3" in shortened(plant.publisher.alerts()))
    plant.inspect.paused = False
    film.released.release()
    plant.publisher.wait_for_score(9)
    for _ in range(60):
        film.released.release()
    plant.stop()


def test_a_new_threshold_holds_for_the_next_frame_judged(tmp_path: Path, gate: Callable[..., Gate]) -> None:
    judged = gate(Inspector, "judge", at=3)
    plant = Plant(tmp_path, Film([LEFT] * 6)).start()
    judged.wait()
    plant.inspect.verdict = read_verdict(
        plant.settings.model_copy(update={"judge": JudgeSettings(threshold=1e6)}), plant.bundle
    )
    judged.open()
    assert plant.ended.wait(PATIENCE)
    plant.stop()
    scores = [message for message in plant.publisher.taken if isinstance(message, Score)]
    assert [score.threshold for score in scores] == [THRESHOLD] * 2 + [1e6] * 4
    assert [score.anomalous for score in scores] == [True] * 2 + [False] * 4


def test_stages_add_up_to_the_time_since_capture(tmp_path: Path) -> None:
    plant = Plant(tmp_path, Film([GOOD] * 3)).run()
    for message in plant.publisher.taken:
        assert isinstance(message, Score)
        ms = dict(message.latency_ms)
        assert list(ms) == ["wait", "prepare", "infer", "judge", "total"]
        assert ms.pop("total") == pytest.approx(sum(ms.values()), abs=0.01)
