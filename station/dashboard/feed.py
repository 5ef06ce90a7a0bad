"""The dashboard's line to the broker: what stations say comes in, commands and judgements go out.

Everything is taken in the network thread: MQTT acknowledges a message when ``on_message`` returns, so an alert is in
the archive before the broker may forget it. With the persistent session that makes every alert arrive, also those of
a time when the dashboard was down or killed.
"""

import json
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from Python 3.11 on
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from station.connection import Connection, new_properties
from station.dashboard.archive import FAILURES, Archive, Unpublished
from station.dashboard.fleet import Fleet
from station.dashboard.intake import MAX_FRAME, MAX_JSON, Gone, Heard, NotOursError, Picture, Stations, read
from station.dashboard.records import AlertRecord, Judgement, merge, stamp
from station.files import OutputError, write_file
from station.messages import Alert, Feedback, Health, Reply, Status, Verb
from station.settings import DashboardSettings

log = structlog.get_logger(__name__)

SESSION = timedelta(days=7)  # what comes for us while we are away waits so long at the broker
ANSWER_SECONDS = 10.0
_LATE_SECONDS = 15.0  # after which a command must not be done any more, by the station's clock
WATCHED_SECONDS = 25.0  # the browser says every ten that somebody looks
LEAST_PREVIEW_SECONDS = 3.0  # a station obeys thirty commands a minute, and people want to send some, too
_PREVIEW_PAUSE = 30.0  # after a station has refused one
_PREVIEWS_AT_ONCE = 4  # a look; many pictures at once would delay alerts
_CLIENT_ID = "client-id"
_SUBSCRIPTIONS = "subscriptions.json"
_PREVIEW = b"preview"
_MAX_PENDING = 200  # commands that wait for an answer
_MAX_REASONS = 100  # why messages were left out, that are told apart
_UNWRITTEN_BYTES = 64 * 2**20
# What a station says below its own topics, and how. QoS 0 does not wait for us while we are away: what it tells is old.
_TOPICS = (
    ("status", 1),
    ("info", 1),
    ("alert", 1),
    ("alert/+/image", 1),
    ("alert/+/frame", 1),
    ("feedback", 1),
    ("reply/+", 1),
    ("score", 0),
    ("health", 0),
    ("snapshot/+/image", 0),
)


class CommandRefusedError(Exception):
    """A command could not be sent, or nobody answered it: ``code: words``."""


class Feed:
    """One client of the broker.

    Attributes:
        on_alert: called when an alert has changed; in the network thread, as the others.
        on_removed: called when a station was taken out of service.
        on_connection: called when the connection came or went.
        rejected: messages that were none, by reason.
    """

    def __init__(self, settings: DashboardSettings, fleet: Fleet, archive: Archive) -> None:
        """Prepare; ``start`` connects.

        Raises:
            SettingsError: a TLS file or the password file cannot be used.
        """
        self._settings = settings.dashboard
        self._prefix = settings.mqtt.prefix
        self._fleet = fleet
        self._archive = archive
        self._stations = Stations(settings.dashboard.stations)
        self._id = _client_id(settings)
        self._connection = Connection(settings.mqtt, self._id, session=SESSION, most_bytes=MAX_FRAME + MAX_JSON)
        self._connection.on_connected = self._connected
        self._connection.on_disconnected = self._disconnected
        self._connection.on_published = self._published
        self._connection.on_message = self._receive
        self._lock = threading.Lock()
        self._seq = 0
        self._waiting: dict[str, Future[Reply]] = {}  # by correlation data or id
        self._sent: dict[int, Callable[[ReasonCode], None]] = {}  # message id → what to do with the broker's verdict
        self._watched: dict[str, float] = {}  # path → until when
        self._next_preview: dict[str, float] = {}
        self._keeping = threading.RLock()  # the order of what is to be kept
        self._unwritten: deque[tuple[Heard, float]] = deque()  # what the disk did not take
        self._unwritten_bytes = 0
        self._disk: str | None = None
        self._refused: str | None = None
        self.rejected: Counter[str] = Counter()
        self.on_alert: Callable[[AlertRecord], None] = lambda _: None
        self.on_removed: Callable[[str], None] = lambda _: None
        self.on_connection: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Take up what the archive knows, and connect."""
        for path, document, seen in self._archive.stations():
            status, since = _read_note(document)
            if path in self._stations:
                self._fleet.remember(path, status, seen, since)
        now = time.time()
        self._fleet.recall(
            (record for record in self._archive.open_alerts() if record.station in self._stations),
            self._archive.opened_since(now - 86_400),
        )
        for path in self._fleet.paths():
            for record in self._archive.alerts(station=path, limit=5)[0]:
                if record.image:
                    self._fleet.show_picture_of(record, record.updated_at.timestamp())
                    break
        self._connection.start()

    def stop(self) -> None:
        """Say goodbye; the broker keeps our session."""
        self._connection.stop(1.0)

    @property
    def broker(self) -> dict[str, Any]:
        """As the page gets it: where, whether we are connected, and what is wrong."""
        connected = self._connection.connected
        trouble = self._disk or self._refused or self._fleet.trouble
        return {
            "where": self._connection.where,
            "connected": connected,
            "trouble": trouble if connected else self._connection.problem or "connecting",
        }

    # --- out ---

    def command(self, path: str, verb: Verb, by: str, threshold: float | None = None) -> Reply:
        """Send a command and wait for its answer; blocks.

        Raises:
            CommandRefusedError: it could not be sent, or nobody answered.
        """
        if self._fleet.state(path, time.time()) in ("offline", "stopped"):
            raise CommandRefusedError("offline: the station is not running, or has no connection to the broker")
        id_ = secrets.token_hex(12)
        answer: Future[Reply] = Future()
        with self._lock:
            if len(self._waiting) >= _MAX_PENDING:
                raise CommandRefusedError("too-many: too many commands wait for an answer")
            self._waiting[id_] = answer
        try:
            payload: dict[str, Any] = {"id": id_, "by": by}
            # paho sends again what the broker has not acknowledged, at the next log-in: that may be long after.
            if (clock := self._fleet.clock_of(path, time.time())) is not None:
                payload["expires_at"] = stamp(clock + timedelta(seconds=_LATE_SECONDS))
            if threshold is not None:
                payload["threshold"] = threshold
            self._send_command(path, verb, payload, id_.encode(), answer)
            return answer.result(ANSWER_SECONDS)
        except FutureTimeoutError:
            raise CommandRefusedError(
                f"no-answer: the station has not answered within {ANSWER_SECONDS:.0f} s; is it running?"
            ) from None
        finally:
            with self._lock:
                self._waiting.pop(id_, None)

    def judge(self, path: str, alert: str, judgement: Judgement) -> AlertRecord | None:
        """Keep what somebody said of an alert and publish it, now or when the broker is back.

        Returns:
            The alert; None: there is none, or the same was said already.
        """
        kept = self._archive.put_feedback(path, alert, judgement)
        if kept is None:
            return None
        record, row = kept
        self._publish_feedback(Unpublished(row, path, alert, judgement))
        self._show(record)
        return record

    def watch(self, path: str) -> None:
        """Somebody looks at this station: snapshots are asked for, for a while."""
        with self._lock:
            self._watched[path] = time.monotonic() + WATCHED_SECONDS

    def ask_previews(self) -> None:
        """Ask for the snapshots that are due; called a few times a second."""
        every = self._settings.preview_every
        if every == 0 or not self._connection.connected:
            return
        now, asked = time.monotonic(), 0
        with self._lock:
            self._watched = {path: until for path, until in self._watched.items() if until > now}
            for path in [path for path in self._next_preview if path not in self._watched]:
                if self._next_preview[path] <= now:
                    del self._next_preview[path]
            due = sorted(
                (path for path in self._watched if self._next_preview.get(path, 0.0) <= now),
                key=lambda path: self._next_preview.get(path, 0.0),
            )
        for path in due:
            if asked < _PREVIEWS_AT_ONCE and self._fleet.state(path, time.time()) in ("online", "degraded"):
                asked += 1
                with self._lock:
                    self._next_preview[path] = now + max(every, LEAST_PREVIEW_SECONDS)
                # No id: the station would remember each for ten minutes.
                self._send_command(path, "snapshot", {"by": "dashboard"}, _PREVIEW + b" " + path.encode(), None)

    def retry(self) -> None:
        """Write what the disk did not take, if it does now; once a second."""
        if self._unwritten:
            self._retry()
            if not self._unwritten:
                self._set_disk(None)

    def keep_house(self) -> None:
        """Keep scores and stations, stay within the bounds; every half minute."""
        self._retry()
        try:
            self._archive.put_scores(self._fleet.take_rows())
            self._archive.put_stations(self._notes())
            self._archive.prune()
            if self._disk is not None and not self._unwritten:
                self._set_disk(None)
        except FAILURES as error:
            self._set_disk(error)

    def finish(self) -> None:
        """Keep what ``keep_house`` would have kept later; at the end."""
        self._retry()
        try:
            self._archive.put_scores(self._fleet.take_rows(all_=True))
            self._archive.put_stations(self._notes())
        except FAILURES as error:
            self._set_disk(error)

    def _notes(self) -> list[tuple[str, str, float]]:
        return [
            (path, _note(status, since), seen if seen is not None else time.time())
            for path, status, seen, since in self._fleet.notes()
        ]

    def _send_command(
        self, path: str, verb: Verb, payload: dict[str, Any], correlation: bytes, answer: "Future[Reply] | None"
    ) -> None:
        client = self._connection.client
        properties = None
        if self._connection.protocol == "5":
            properties = _json_properties()
            properties.ResponseTopic = f"{self._prefix}/{path}/reply/{self._id}"
            properties.CorrelationData = correlation
            properties.MessageExpiryInterval = int(ANSWER_SECONDS)
        if not self._connection.connected:
            raise CommandRefusedError(f"broker-away: {self._connection.problem or 'not connected'}")

        def verdict(reason: ReasonCode) -> None:
            if reason.is_failure and answer is not None and not answer.done():
                answer.set_exception(
                    CommandRefusedError(
                        f"broker-refuses: {reason}: the broker does not let this page send commands; check its access "
                        "list"
                    )
                )

        topic = f"{self._prefix}/{path}/cmd/{verb}"
        with self._lock:  # the verdict must not come before it is waited for
            sent = client.publish(topic, json.dumps(payload), qos=0 if answer is None else 1, properties=properties)
            if sent.rc == mqtt.MQTT_ERR_SUCCESS and answer is not None:
                self._sent[sent.mid] = verdict
        if sent.rc != mqtt.MQTT_ERR_SUCCESS:
            raise CommandRefusedError(f"broker-away: {mqtt.error_string(sent.rc)}")

    def _publish_feedback(self, said: Unpublished) -> None:
        if not self._connection.connected:
            return  # once we are connected again
        with self._lock:
            self._seq += 1
            judgement = said.judgement
            message = Feedback(
                seq=self._seq,
                at=judgement.at,
                alert=said.alert,
                verdict=judgement.verdict,
                by=judgement.by,
                note=judgement.note,
            )
            properties = None
            if self._connection.protocol == "5":
                properties = _json_properties()
                properties.MessageExpiryInterval = int(Feedback.expiry.total_seconds())
                properties.UserProperty = [("schema", message.schema_)]
            topic = f"{self._prefix}/{said.station}/{Feedback.topic}"
            sent = self._connection.client.publish(topic, message.payload(), qos=1, properties=properties)
            if sent.rc == mqtt.MQTT_ERR_SUCCESS:
                self._sent[sent.mid] = lambda reason: self._feedback_arrived(said, reason)

    def _feedback_arrived(self, said: Unpublished, reason: ReasonCode) -> None:
        if reason.is_failure:
            self._refused = (
                f"broker-refuses: {reason}: what is said of alerts stays here; let this page's user write feedback in "
                "the broker's access list"
            )
            self.on_connection()
            return
        record = self._archive.set_published(said.row)
        if record is not None:
            self._show(record)

    # --- the network thread ---

    def _connected(self, _announced: Properties | None) -> None:
        self._refused = None
        with self._lock:
            self._sent.clear()
        topics = [
            (f"{self._prefix}/{pattern}/{topic}", qos) for pattern in self._stations.patterns for topic, qos in _TOPICS
        ]
        client = self._connection.client
        if not_any_more := self._change_subscriptions({topic for topic, _ in topics}):
            client.unsubscribe(not_any_more)
        if self._connection.protocol == "5":
            # Retained messages again after every log-in: what the last one told may have changed meanwhile.
            client.subscribe([(topic, SubscribeOptions(qos=qos)) for topic, qos in topics])
        else:
            client.subscribe(topics)
        self._fleet.set_broker(None)
        try:
            for said in self._archive.unpublished():
                self._publish_feedback(said)
        except FAILURES as error:
            self._set_disk(error)
        self.on_connection()

    def _change_subscriptions(self, topics: set[str]) -> list[str]:
        """Note what the session is subscribed to. Returns what it was to, and is to be no more: other settings."""
        file = self._settings.state_folder / _SUBSCRIPTIONS
        try:
            known = {str(topic) for topic in json.loads(file.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError):
            known = set()
        if known != topics:
            try:
                write_file(file, json.dumps(sorted(topics)).encode())
            except OutputError as error:
                self._set_disk(error)
        return sorted(known - topics)

    def _disconnected(self) -> None:
        self._fleet.set_broker("connection lost")
        self.on_connection()

    def _published(self, message_id: int, reason: ReasonCode) -> None:
        with self._lock:
            verdict = self._sent.pop(message_id, None)
        if verdict is not None:
            try:
                verdict(reason)
            except FAILURES as error:
                self._set_disk(error)

    def _receive(self, message: mqtt.MQTTMessage) -> None:
        try:
            heard = read(self._prefix, message.topic, bytes(message.payload))
            if heard.station not in self._stations:
                self._reject("not a station that is shown")
            elif isinstance(heard.what, Reply):
                self._answered(heard.what, message)
            else:
                self._take(heard, retained=message.retain)
        except NotOursError as error:
            self._reject(str(error))
        except FAILURES as error:
            self._set_disk(error)
        except Exception as error:  # noqa: BLE001 - what leaves here ends the network thread, and with it all that the page shows
            self._reject(f"internal: {type(error).__name__}", error)

    def _reject(self, why: str, error: Exception | None = None) -> None:
        """Count it, and log the first of each kind: whoever floods us shall not fill the log."""
        if len(self.rejected) < _MAX_REASONS or why in self.rejected:
            self.rejected[why] += 1
            if self.rejected[why] == 1:
                log.warning("messages are left out", reason=why, exc_info=error)

    def _take(self, heard: Heard, *, retained: bool) -> None:
        now = time.time()
        what = heard.what
        if isinstance(what, Gone):
            left = self._fleet.forget(heard.station)
            if left is not None:
                self._archive.forget_station(heard.station)
                for record in left:
                    self._archive.put_alert(record.ended())
                self.on_removed(heard.station)
        elif isinstance(what, Picture) and what.kind == "snapshot":
            self._fleet.take_snapshot(heard.station, what.data, now)
        elif isinstance(what, Alert | Picture | Feedback):
            self._keep(heard, now)
        else:
            new = heard.station not in self._fleet
            if self._fleet.take(heard.station, what, now, retained=retained):
                if new:
                    self._archive.put_stations(self._notes())
                if isinstance(what, Health):
                    self._close_left_open(heard.station)

    def _keep(self, heard: Heard, now: float) -> None:
        """What must be in the archive before it is acknowledged; in order, also where the disk failed meanwhile."""
        with self._keeping:
            if self._unwritten:
                self._put_aside(heard, now)
                return
            try:
                self._archive_it(heard, now)
            except FAILURES as error:
                self._put_aside(heard, now)
                self._set_disk(error)

    def _archive_it(self, heard: Heard, now: float) -> None:
        path, what = heard.station, heard.what
        if isinstance(what, Alert):
            known = self._archive.alert(path, what.id)
            record = merge(known, path, what)
            if record is not None and self._fleet.has_room_for(path):
                self._archive.put_alert(record)
                self._fleet.take_alert(record, now, new=known is None)
                self.on_alert(record)
        elif isinstance(what, Picture) and what.kind != "snapshot":
            pictured = self._archive.put_picture(path, what.id, what.kind, what.data)
            if pictured is not None:
                if what.kind == "image":
                    self._fleet.show_picture_of(pictured, now)
                self._show(pictured)
        elif isinstance(what, Feedback):
            said = self._archive.put_feedback(path, what.alert, Judgement.of(what))
            if said is not None:
                self._show(said[0])

    def _show(self, record: AlertRecord) -> None:
        """An alert is another than before, but not because the station said so."""
        self._fleet.take_alert(record, time.time(), new=False, live=False)
        self.on_alert(record)

    def _close_left_open(self, path: str) -> None:
        for record in self._fleet.left_open(path):
            closed = record.ended()
            self._archive.put_alert(closed)
            self._show(closed)
            log.warning("an alert of a station's earlier run was never closed; closed", station=path, id=record.id)

    def _answered(self, reply: Reply, message: mqtt.MQTTMessage) -> None:
        correlation: bytes | None = getattr(message.properties, "CorrelationData", None)
        if correlation is not None and correlation.startswith(_PREVIEW):
            if not reply.ok:
                path = correlation[len(_PREVIEW) + 1 :].decode(errors="replace")
                with self._lock:
                    if path in self._watched:
                        self._next_preview[path] = time.monotonic() + _PREVIEW_PAUSE
            return
        key = correlation.decode(errors="replace") if correlation is not None else reply.id
        with self._lock:
            answer = self._waiting.get(key or "")
            if answer is not None and not answer.done():
                answer.set_result(reply)

    # --- a disk that fails ---

    def _put_aside(self, heard: Heard, now: float) -> None:
        size = _size(heard)
        if self._unwritten_bytes + size > _UNWRITTEN_BYTES:
            log.error("lost: the disk takes nothing and the memory for it is full", station=heard.station)
            return
        self._unwritten.append((heard, now))
        self._unwritten_bytes += size
        if isinstance(heard.what, Alert) and (record := merge(None, heard.station, heard.what)) is not None:
            self._fleet.take_alert(record, now, new=False)
            self.on_alert(record)

    def _retry(self) -> None:
        while True:
            with self._keeping:
                if not self._unwritten:
                    return
                heard, now = self._unwritten[0]
                try:
                    self._archive_it(heard, now)
                except FAILURES as error:
                    self._set_disk(error)
                    return
                self._unwritten.popleft()
                self._unwritten_bytes -= _size(heard)

    def _set_disk(self, error: Exception | None) -> None:
        words = None if error is None else f"disk: alerts and pictures cannot be kept: {error}"
        if words != self._disk:
            self._disk = words
            if words is None:
                log.info("the disk takes what is to be kept again")
            else:
                log.error("the archive cannot be written", reason=str(error))
            self.on_connection()


def _client_id(settings: DashboardSettings) -> str:
    """Ours for ever, as the broker knows our session by it, and nobody else's."""
    if settings.mqtt.client_id is not None:
        return f"{settings.mqtt.client_id}-dashboard"  # the station's own, where both share a file
    file: Path = settings.dashboard.state_folder / _CLIENT_ID
    try:
        known = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        known = ""
    if not known.startswith("station-dashboard-"):
        known = f"station-dashboard-{secrets.token_hex(6)}"
        write_file(file, known.encode())
    return known


def _note(status: Status | None, since: datetime | None) -> str:
    """What the archive remembers of a station."""
    told = status.model_dump(mode="json", by_alias=True) if status is not None else None
    return json.dumps({"status": told, "since": since.isoformat() if since is not None else None})


def _read_note(document: str) -> tuple[Status | None, datetime | None]:
    try:
        note = json.loads(document)
        since = datetime.fromisoformat(note["since"]) if note["since"] is not None else None
        return Status.model_validate(note["status"]) if note["status"] is not None else None, since
    except (ValueError, LookupError, TypeError):
        return None, None


def _size(heard: Heard) -> int:
    return len(heard.what.data) if isinstance(heard.what, Picture) else 1024


def _json_properties() -> Properties:
    properties = new_properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    properties.PayloadFormatIndicator = 1
    return properties
