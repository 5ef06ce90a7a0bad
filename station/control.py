"""Commands over MQTT: which are obeyed, and that each is answered, within bounds.

``Control.receive`` judges a message in the network thread, ``Control.execute`` does what it orders in the main
thread. Who may send commands at all is for the broker's access list to say; what passes it is still taken for
hostile. docs/integration.md tells the rules to those who send, docs/decisions/0043-commands.md why they are so.
"""

import json
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import paho.mqtt.client as mqtt
import structlog
from pydantic import ValidationError

from station.messages import VERBS, Command, Reply, SetThreshold, Verb, utc_now
from station.settings import CommandSettings

log = structlog.get_logger(__name__)

MAX_PAYLOAD = 4096  # bytes
MAX_RESPONSE_TOPIC = 1024  # bytes
MAX_CORRELATION = 1024  # bytes
REMEMBERED_FOR = 600.0  # seconds; as long the same command again is answered from memory
_MINUTE = 60.0
_COMPLAINT_EVERY = 1.0  # seconds; beyond the limit we answer this often, else a flood made us publish one
_MAX_ERROR = 300  # characters
_VERB = re.compile(r"[a-z-]{1,32}")

Result = dict[str, str | float | None]
Handler = Callable[[Command], Result]
_Key = tuple[str, str | bytes]


class CommandError(Exception):
    """A command cannot be done now; the message is ``code: words`` and goes into the reply."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply and where it goes.

    Attributes:
        reply: what to publish.
        response_topic: where the sender wants it (MQTT 5); None: on ``reply/<verb>``.
        correlation_data: the sender's, to be sent back (MQTT 5).
    """

    reply: Reply
    response_topic: str | None = None
    correlation_data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A command that was found good.

    Attributes:
        verb: what to do.
        command: the payload.
        deadline: monotonic second after which it must not be done any more; None: no message expiry.
        response_topic: see Answer.
        correlation_data: see Answer.
    """

    verb: Verb
    command: Command
    deadline: float | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Done:
    """What was done already, and what was answered."""

    at: float
    verb: Verb
    command: Command
    reply: Reply


class _RefusedError(Exception):
    """Why a message is no order, ``code: words``, and the command's id as far as it could be read."""

    def __init__(self, words: str, id_: str | None = None) -> None:
        super().__init__(words)
        self.id = id_


class Control:
    """Judges commands and has them done.

    ``receive`` belongs to one thread and ``execute`` to one other.
    """

    def __init__(
        self,
        settings: CommandSettings,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Nothing is remembered yet.

        Args:
            settings: what is allowed, and how often.
            clock: monotonic seconds.
            now: UTC, for ``expires_at``.
        """
        self._settings = settings
        self._clock = clock
        self._now = now
        self._received: deque[float] = deque()  # when; of the last minute, at most per_minute
        self._next_complaint = 0.0
        self._unanswered = 0  # of a flood, since the last complaint
        self._done: OrderedDict[_Key, _Done] = OrderedDict()  # oldest first

    def receive(self, message: mqtt.MQTTMessage) -> Order | Answer | None:
        """Judge a message on ``cmd/<verb>``; quick, and never raises.

        Returns:
            An order for ``execute``; or an answer to publish at once, which says why there is none; or None where
            there is nothing to say: more messages than the limit allows are answered once a second.
        """
        try:
            return self._receive(message)
        except Exception:  # what leaves here ends the network thread, and with it all that the station has to say
            log.exception("a command could not be judged")
            return Answer(_refuse("unknown", "internal: unexpected error; see the station's log"))

    def execute(self, order: Order, handlers: Mapping[Verb, Handler]) -> Answer:
        """Do what is ordered, unless it was done already or is too late.

        Args:
            order: from ``receive``.
            handlers: by verb; each returns what goes into the reply's ``result``, or raises CommandError.

        Returns:
            The answer, in every case.
        """
        try:
            reply = self._recall(order) or self._perform(order, handlers)
        except _RefusedError as error:
            reply = _refuse(order.verb, str(error), order.command.id)
        log.info("command", verb=order.verb, by=order.command.by, id=order.command.id, ok=reply.ok, error=reply.error)
        return Answer(reply, order.response_topic, order.correlation_data)

    # --- the network thread ---

    def _receive(self, message: mqtt.MQTTMessage) -> Order | Answer | None:
        prefix, verb = _split(message)
        shown = verb if _VERB.fullmatch(verb) else "unknown"  # it becomes a level of the reply's topic
        properties = message.properties
        correlation: bytes | None = getattr(properties, "CorrelationData", None)
        response_topic: str | None = getattr(properties, "ResponseTopic", None)
        problem, id_ = None, None
        if correlation is not None and len(correlation) > MAX_CORRELATION:
            problem, correlation = f"correlation-data: longer than {MAX_CORRELATION} bytes", None
        if response_topic is not None and (why := _unusable(response_topic, prefix)):
            problem, response_topic = f"response-topic: {why}", None
        if self._too_many():
            complaint = self._complain()
            return None if complaint is None else Answer(_refuse(shown, complaint), response_topic, correlation)
        if problem is None:
            try:
                return self._order(message, verb, response_topic, correlation)
            except _RefusedError as error:
                problem, id_ = str(error), error.id
        log.warning("command refused", verb=shown, error=problem)
        return Answer(_refuse(shown, problem, id_), response_topic, correlation)

    def _too_many(self) -> bool:
        """Whether the limit is reached; counts the message if not. Refused ones count too, a flood's rest does not."""
        now = self._clock()
        while self._received and self._received[0] <= now - _MINUTE:
            self._received.popleft()
        if len(self._received) >= self._settings.per_minute:
            return True
        self._received.append(now)
        return False

    def _complain(self) -> str | None:
        now = self._clock()
        self._unanswered += 1
        if now < self._next_complaint:
            return None
        self._next_complaint = now + _COMPLAINT_EVERY
        dropped, self._unanswered = self._unanswered, 0
        seconds = max(0.0, self._received[0] + _MINUTE - now)
        error = (
            f"rate-limited: more than {self._settings.per_minute} commands a minute (commands.per_minute); "
            f"{dropped} refused since last said, the next is looked at in {seconds:.0f} s"
        )
        log.warning("too many commands", refused=dropped, per_minute=self._settings.per_minute)
        return error

    def _order(
        self, message: mqtt.MQTTMessage, verb: str, response_topic: str | None, correlation: bytes | None
    ) -> Order:
        if verb not in VERBS:
            raise _RefusedError(f"unknown-command: known are {', '.join(VERBS)}")
        if verb not in self._settings.allow:
            raise _RefusedError("not-allowed: commands.allow of this station does not name it")
        if message.retain:
            # It would be obeyed again at every log-in, for ever. Retained messages do not end by being refused.
            raise _RefusedError("retained: commands must not be retained; clear it with an empty retained message")
        command = _parse(message.payload, SetThreshold if verb == "set-threshold" else Command)
        expiry: int | None = getattr(message.properties, "MessageExpiryInterval", None)
        deadline = None if expiry is None else self._clock() + expiry
        order = Order(verb, command, deadline, response_topic, correlation)
        self._demand_in_time(order)
        return order

    # --- both ---

    def _demand_in_time(self, order: Order) -> None:
        if order.deadline is not None and self._clock() >= order.deadline:
            raise _RefusedError("expired: the message's expiry interval is over", order.command.id)
        expires_at = order.command.expires_at
        if expires_at is not None and (now := self._now()) >= expires_at:
            raise _RefusedError(f"expired: expires_at is over; it is {now:%Y-%m-%dT%H:%M:%SZ} here", order.command.id)

    # --- the main thread ---

    def _recall(self, order: Order) -> Reply | None:
        """The reply given when this was done before; None: it was not, as far as remembered."""
        now = self._clock()
        while self._done and next(iter(self._done.values())).at <= now - REMEMBERED_FOR:
            self._done.popitem(last=False)
        for key in _keys(order):
            done = self._done.get(key)
            if done is None:
                continue
            if (done.verb, _lasting(done.command)) != (order.verb, _lasting(order.command)):
                raise _RefusedError(
                    f"conflict: the same id or correlation data came with another command in the last "
                    f"{REMEMBERED_FOR / 60:.0f} minutes"
                )
            return done.reply
        return None

    def _perform(self, order: Order, handlers: Mapping[Verb, Handler]) -> Reply:
        self._demand_in_time(order)
        handler = handlers.get(order.verb)
        if handler is None:
            raise _RefusedError("not-now: the station cannot do this at the moment")
        try:
            reply = Reply(verb=order.verb, ok=True, id=order.command.id, result=handler(order.command))
        except CommandError as error:
            reply = _refuse(order.verb, str(error), order.command.id)
        except Exception as error:
            log.exception("a command failed", verb=order.verb)
            reply = _refuse(
                order.verb,
                f"internal: unexpected error ({type(error).__name__}); see the station's log",
                order.command.id,
            )
        # Also where it failed: half of it may have been done. What is remembered is bounded by the rate limit.
        done = _Done(self._clock(), order.verb, order.command, reply)
        for key in _keys(order):
            self._done[key] = done
        return reply


def _split(message: mqtt.MQTTMessage) -> tuple[str, str]:
    """The station's prefix and the verb."""
    try:
        topic = message.topic
    except UnicodeDecodeError:  # paho decodes it here; some brokers do not check
        return "", ""
    prefix, _, verb = topic.rpartition("/cmd/")
    return prefix, verb


def _unusable(topic: str, prefix: str) -> str | None:
    """Why we do not publish there; None: we do.

    The station must not lend its rights: whoever may send commands could otherwise have it write to its own
    ``alert`` or command another station.
    """
    if not topic or len(topic.encode(errors="replace")) > MAX_RESPONSE_TOPIC:
        return f"must have 1 to {MAX_RESPONSE_TOPIC} bytes"
    if not topic.isprintable() or topic.startswith("$") or "+" in topic or "#" in topic:
        return "no wildcards, no control characters and no leading $"
    if "cmd" in topic.split("/"):
        return "must not lie below cmd/"
    if topic.startswith(f"{prefix}/") and not topic.startswith(f"{prefix}/reply/"):
        return "below this station's own topics only reply/ is for replies"
    return None


def _parse(payload: bytes | bytearray, model: type[Command]) -> Command:
    if len(payload) > MAX_PAYLOAD:
        raise _RefusedError(f"too-large: {len(payload)} bytes; at most {MAX_PAYLOAD}")
    text = payload or b"{}"
    try:
        # Twice: pydantic takes the last of equal keys without a word, json "40" for 40.
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _RefusedError("malformed: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _RefusedError(f"malformed: not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _RefusedError("malformed: nested too deeply") from None
    except ValueError as error:
        raise _RefusedError(f"malformed: {error}") from None
    try:
        command = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))[:80]
        known = ", ".join(model.model_fields)
        unknown = f"; known here: {known}" if first["type"] == "extra_forbidden" else ""
        raise _RefusedError(f"invalid: {key + ': ' if key else ''}{first['msg']}{unknown}", _id_of(value)) from None
    for name, value in (("by", command.by), ("id", command.id or "")):
        if not value.isprintable():  # they go into logs
            raise _RefusedError(f"invalid: {name}: control characters")
    return command


def _id_of(value: object) -> str | None:
    """The id in what is otherwise no good command, so that its sender can tell whose refusal it is."""
    id_ = value.get("id") if isinstance(value, dict) else None
    return id_ if isinstance(id_, str) and 1 <= len(id_) <= 64 and id_.isprintable() else None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _keys(order: Order) -> list[_Key]:
    """What the same command, sent again, has in common with the first.

    Correlation data is the sender's own and so holds for its response topic only: two senders may both count.
    """
    keys: list[_Key] = []
    if order.correlation_data is not None:
        keys.append((f"correlation {order.response_topic or ''}", order.correlation_data))
    if order.command.id is not None:
        keys.append(("id", order.command.id))
    return keys


def _lasting(command: Command) -> Command:
    return command.model_copy(update={"expires_at": None})  # who asks again may give more time


def _refuse(verb: str, error: str, id_: str | None = None) -> Reply:
    words = error if len(error) <= _MAX_ERROR else error[: _MAX_ERROR - 1] + "…"
    return Reply(verb=verb, ok=False, error=words.encode(errors="replace").decode(), id=id_)
