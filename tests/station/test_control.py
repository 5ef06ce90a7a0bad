import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import paho.mqtt.client as mqtt
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import ValidationError

from station.control import (
    MAX_CORRELATION,
    MAX_PAYLOAD,
    MAX_RESPONSE_TOPIC,
    REMEMBERED_FOR,
    Answer,
    CommandError,
    Control,
    Order,
)
from station.messages import VERBS, Command, SetThreshold, Verb
from station.settings import CommandSettings

PREFIX = "station/v1/plant/line-1/cam-1"
NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
FORTY = b'{"threshold": 40, "by": "ann"}'


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def utc(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds - 1000)


def message(
    verb: str | bytes,
    payload: bytes = b"",
    *,
    retain: bool = False,
    to: str | None = None,
    correlation: bytes | None = None,
    expiry: int | None = None,
) -> mqtt.MQTTMessage:
    """As paho hands it over."""
    verb = verb.encode() if isinstance(verb, str) else verb
    made = mqtt.MQTTMessage(topic=f"{PREFIX}/cmd/".encode() + verb)
    made.payload, made.retain, made.qos = payload, retain, 1
    if to is not None or correlation is not None or expiry is not None:
        made.properties = Properties(PacketTypes.PUBLISH)
        if to is not None:
            made.properties.ResponseTopic = to
        if correlation is not None:
            made.properties.CorrelationData = correlation
        if expiry is not None:
            made.properties.MessageExpiryInterval = expiry
    return made


class Station:
    """What commands act on, behind a Control."""

    def __init__(self, **changes: object) -> None:
        self.clock = Clock()
        self.control = Control(CommandSettings.model_validate(changes), self.clock, self.clock.utc)
        self.done: list[tuple[Verb, Command]] = []
        self.handlers = {verb: self._handler(verb) for verb in VERBS}

    def _handler(self, verb: Verb) -> Callable[[Command], dict[str, str | float | None]]:
        def handle(command: Command) -> dict[str, str | float | None]:
            self.done.append((verb, command))
            return {"done": len(self.done)}

        return handle

    def order(self, made: mqtt.MQTTMessage) -> Order:
        order = self.control.receive(made)
        assert isinstance(order, Order)
        return order

    def answer(self, made: mqtt.MQTTMessage) -> Answer:
        """Received and, if it is good, executed."""
        received = self.control.receive(made)
        assert received is not None
        return self.control.execute(received, self.handlers) if isinstance(received, Order) else received

    def refusal(self, made: mqtt.MQTTMessage) -> str:
        answer = self.answer(made)
        assert not answer.reply.ok
        assert not self.done
        assert answer.reply.error
        return answer.reply.error


@pytest.fixture
def station() -> Station:
    return Station()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_done_and_answered(station: Station, verb: Verb) -> None:
    payload = FORTY if verb == "set-threshold" else b""
    answer = station.answer(message(verb, payload))
    assert [done for done, _ in station.done] == [verb]
    reply = answer.reply
    assert (reply.verb, reply.ok, reply.error, reply.result) == (verb, True, None, {"done": 1})
    assert (answer.response_topic, answer.correlation_data) == (None, None)


def test_the_command_reaches_its_handler(station: Station) -> None:
    payload = b'{"threshold": 4.5, "by": "J\xc3\xb6rg", "id": "7", "expires_at": "2024-05-01T14:00:01+02:00"}'
    answer = station.answer(message("set-threshold", payload))
    [(_, command)] = station.done
    assert command == SetThreshold(threshold=4.5, by="Jörg", id="7", expires_at=NOON + timedelta(seconds=1))
    assert answer.reply.id == "7"


def test_the_answer_goes_where_the_sender_wants_it(station: Station) -> None:
    answer = station.answer(message("pause", to="plant/desk", correlation=b"\x00\xff"))
    assert (answer.response_topic, answer.correlation_data) == ("plant/desk", b"\x00\xff")
    answer = station.answer(message("pause", b"{", to="plant/desk", correlation=b"2"))
    assert (answer.reply.ok, answer.response_topic, answer.correlation_data) == (False, "plant/desk", b"2")


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (message("reboot"), "unknown-command: known are pause, "),
        (message(""), "unknown-command: "),
        (message("pause", retain=True), "retained: "),
        (message("pause", b" " * (MAX_PAYLOAD + 1)), f"too-large: {MAX_PAYLOAD + 1} bytes"),
        (message("pause", b"{"), "malformed: not JSON"),
        (message("pause", b"{} {}"), "malformed: not JSON"),
        (message("pause", b"\xff"), "malformed: not UTF-8"),
        (message("pause", b"\xef\xbb\xbf{}"), "malformed: "),
        (message("pause", b"[" * MAX_PAYLOAD), "malformed: "),
        (message("pause", b'{"a":' * 800), "malformed: "),
        (message("pause", b'{"by": "x", "by": "y"}'), "malformed: a key is there twice"),
        (message("pause", b"[]"), "invalid: "),
        (message("pause", b"null"), "invalid: "),
        (message("pause", b'"pause"'), "invalid: "),
        (message("pause", b'{"force": true}'), "invalid: force: Extra inputs are not permitted; known here: id, by"),
        (message("pause", b'{"id": ""}'), "invalid: id: "),
        (message("pause", b'{"id": 7}'), "invalid: id: "),
        (message("pause", b'{"id": "a\\nb"}'), "invalid: id: control characters"),
        (message("pause", b'{"by": "\\u202eann"}'), "invalid: by: control characters"),
        (message("pause", b'{"by": "\\ud800"}'), "invalid: "),
        (message("pause", b'{"expires_at": 2000000000}'), "invalid: expires_at: "),
        (message("pause", b'{"expires_at": "2030-01-01T00:00:00"}'), "invalid: expires_at: "),
        (message("set-threshold"), "invalid: by: Field required"),
        (message("set-threshold", b'{"threshold": 40}'), "invalid: by: Field required"),
        (message("set-threshold", b'{"threshold": 40, "by": ""}'), "invalid: by: "),
        (message("set-threshold", b'{"by": "ann"}'), "invalid: threshold: Field required"),
        (message("set-threshold", b'{"by": "ann", "threshold": "40"}'), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": true}'), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": null}'), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": 0}'), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": -1}'), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": 1e10}'), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": 1e999}'), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": %s}' % (b"9" * 4000)), "invalid: threshold: "),
        (message("set-threshold", b'{"by": "ann", "threshold": NaN}'), "malformed: NaN is no number"),
        (message("set-threshold", b'{"by": "ann", "threshold": Infinity}'), "malformed: Infinity is no number"),
        (message("pause", expiry=0), "expired: "),
        (message("pause", b'{"expires_at": "2024-05-01T12:00:00Z"}'), "expired: expires_at is over; it is 2024-05-01T"),
        (message("pause", correlation=b"x" * (MAX_CORRELATION + 1)), "correlation-data: "),
        (message("pause", to=""), "response-topic: "),
        (message("pause", to="plant/+/desk"), "response-topic: no wildcards"),
        (message("pause", to="plant/#"), "response-topic: no wildcards"),
        (message("pause", to="$SYS/broker"), "response-topic: no wildcards"),
        (message("pause", to="plant/\x07"), "response-topic: no wildcards, no control"),
        (message("pause", to="x" * (MAX_RESPONSE_TOPIC + 1)), "response-topic: must have 1 to"),
        (message("pause", to="station/v1/plant/line-1/cam-2/cmd/pause"), "response-topic: must not lie below cmd/"),
        (message("pause", to=f"{PREFIX}/cmd/pause"), "response-topic: must not lie below cmd/"),
        (message("pause", to=f"{PREFIX}/alert"), "response-topic: below this station's own topics only reply/"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_what_is_refused_changes_nothing_and_is_told_why(station: Station, made: mqtt.MQTTMessage, error: str) -> None:
    assert station.refusal(made).startswith(error)


@pytest.mark.parametrize("topic", ["desk", "plant/desk 7", f"{PREFIX}/reply/desk", "x" * MAX_RESPONSE_TOPIC, "cmds/x"])
def test_response_topics_that_are_used(station: Station, topic: str) -> None:
    assert station.answer(message("pause", to=topic)).response_topic == topic


def test_what_is_not_allowed_is_refused() -> None:
    assert Station(allow=["pause"]).refusal(message("resume")).startswith("not-allowed: ")
    assert Station(allow=[]).refusal(message("pause")).startswith("not-allowed: ")


def test_largest_payload_is_taken(station: Station) -> None:
    assert station.answer(message("pause", b"{}".ljust(MAX_PAYLOAD))).reply.ok


@pytest.mark.parametrize("payload", [b'{"id": "7", "force": 1}', b'{"id": "7", "expires_at": "2000-01-01T00:00:00Z"}'])
def test_a_refusal_bears_the_id_of_its_command(station: Station, payload: bytes) -> None:
    assert station.answer(message("pause", payload)).reply.id == "7"


@pytest.mark.parametrize("verb", ["", "Pause", "a" * 33, "päuse", "pause/now", b"\xff"])
def test_a_name_that_is_no_verb_is_not_repeated_in_a_topic(station: Station, verb: str | bytes) -> None:
    answer = station.answer(message(verb))
    assert (answer.reply.verb, answer.reply.ok) == ("unknown", False)


def test_an_unknown_verb_is_answered_on_its_reply_topic(station: Station) -> None:
    assert station.answer(message("reboot")).reply.verb == "reboot"


def test_deep_nesting_is_refused_by_every_python(station: Station) -> None:
    """Up to 3.12 json refuses it, from 3.13 on pydantic does."""
    error = station.refusal(message("pause", b"[" * 2048 + b"]" * 2048))
    assert error.startswith(("malformed: nested too deeply", "invalid: "))


def test_long_errors_are_cut(station: Station) -> None:
    error = station.refusal(message("pause", json.dumps({"x" * 4000: 1}).encode()))
    assert len(error) <= 300


@pytest.mark.parametrize(
    "late", [message("pause", expiry=5), message("pause", b'{"expires_at":"2024-05-01T12:00:05Z"}')]
)
def test_what_waited_too_long_is_not_done(station: Station, late: mqtt.MQTTMessage) -> None:
    first, second = station.order(late), station.order(late)
    station.clock.seconds += 4
    assert station.control.execute(first, station.handlers).reply.ok
    station.clock.seconds += 1
    reply = station.control.execute(second, station.handlers).reply
    assert (reply.ok, len(station.done)) == (False, 1)
    assert (reply.error or "").startswith("expired: ")


@pytest.mark.parametrize("key", [{"correlation": b"1"}, {"payload": b'{"id": "1"}'}, {"correlation": b""}])
def test_the_same_again_is_answered_the_same_and_not_done_again(station: Station, key: dict) -> None:
    first = station.answer(message("pause", **key)).reply
    station.clock.seconds += REMEMBERED_FOR - 1
    assert station.answer(message("pause", **key)).reply == first
    assert len(station.done) == 1
    station.clock.seconds += 1
    assert station.answer(message("pause", **key)).reply.ok
    assert len(station.done) == 2


def test_without_id_and_correlation_every_command_is_done(station: Station) -> None:
    station.answer(message("snapshot"))
    station.answer(message("snapshot"))
    assert len(station.done) == 2


def test_delivered_twice_before_it_is_done(station: Station) -> None:
    orders = [station.order(message("snapshot", correlation=b"1")) for _ in range(2)]
    replies = [station.control.execute(order, station.handlers).reply for order in orders]
    assert replies[0] == replies[1]
    assert len(station.done) == 1


def test_the_answer_from_memory_goes_to_who_asks_now(station: Station) -> None:
    station.answer(message("pause", b'{"id": "1"}', to="a", correlation=b"x"))
    again = station.answer(message("pause", b'{"id": "1"}', to="b", correlation=b"y"))
    assert (again.response_topic, again.correlation_data, len(station.done)) == ("b", b"y", 1)


def test_two_senders_may_both_count_from_one(station: Station) -> None:
    station.answer(message("pause", to="a", correlation=b"1"))
    station.answer(message("resume", to="b", correlation=b"1"))
    assert [verb for verb, _ in station.done] == ["pause", "resume"]


def test_who_asks_again_may_give_more_time(station: Station) -> None:
    first = station.answer(message("pause", b'{"expires_at": "2024-05-01T12:00:05Z"}', correlation=b"1"))
    station.clock.seconds += 10
    again = station.answer(message("pause", b'{"expires_at": "2024-05-01T12:01:00Z"}', correlation=b"1"))
    assert (again, len(station.done)) == (first, 1)


@pytest.mark.parametrize(
    "other", [message("resume", correlation=b"1"), message("pause", b'{"by": "ben"}', correlation=b"1")]
)
def test_one_id_for_two_commands_is_refused(station: Station, other: mqtt.MQTTMessage) -> None:
    station.answer(message("pause", correlation=b"1"))
    reply = station.answer(other).reply
    assert (reply.error or "").startswith("conflict: ")
    assert len(station.done) == 1


def test_a_command_that_fails_is_answered_and_not_tried_again(station: Station) -> None:
    calls: list[Command] = []

    def fail(command: Command) -> dict[str, str | float | None]:
        calls.append(command)
        raise CommandError("not-now: no frame yet")

    station.handlers["snapshot"] = fail
    for _ in range(2):
        reply = station.answer(message("snapshot", b'{"id": "1"}')).reply
        assert (reply.ok, reply.error, reply.id, reply.result) == (False, "not-now: no frame yet", "1", {})
    assert len(calls) == 1


@pytest.mark.parametrize("result", [ZeroDivisionError("secret"), {"x": math.nan}, {"x": object()}, None])
def test_a_handler_out_of_order_is_answered_too(station: Station, result: object) -> None:
    def handle(_: Command) -> dict[str, str | float | None]:
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[return-value]  # that is the point

    station.handlers["snapshot"] = handle
    reply = station.answer(message("snapshot")).reply
    assert not reply.ok
    assert (reply.error or "").startswith("internal: ")
    assert "secret" not in (reply.error or "")


def test_what_has_no_handler_yet_may_be_asked_again(station: Station) -> None:
    handlers = station.handlers
    station.handlers = {}
    assert station.refusal(message("pause", correlation=b"1")).startswith("not-now: ")
    station.handlers = handlers
    assert station.answer(message("pause", correlation=b"1")).reply.ok


def test_more_than_the_limit_is_refused_once_a_second_until_the_minute_is_over() -> None:
    station = Station(per_minute=3)
    assert station.answer(message("pause")).reply.ok
    assert not station.answer(message("pause", b"{")).reply.ok  # counts as well
    station.clock.seconds += 10
    assert station.answer(message("pause")).reply.ok
    over = station.control.receive(message("pause", to="desk", correlation=b"1"))
    assert isinstance(over, Answer)
    assert (over.response_topic, over.correlation_data, over.reply.ok) == ("desk", b"1", False)
    assert (over.reply.error or "").startswith("rate-limited: more than 3 commands a minute")
    assert "1 refused" in (over.reply.error or "")
    assert "in 50 s" in (over.reply.error or "")
    assert [station.control.receive(message("pause")) for _ in range(99)] == [None] * 99
    station.clock.seconds += 1
    over = station.control.receive(message("pause"))
    assert isinstance(over, Answer)
    assert "100 refused" in (over.reply.error or "")
    assert len(station.done) == 2
    station.clock.seconds += 49
    assert station.answer(message("pause")).reply.ok
    assert station.answer(message("pause")).reply.ok
    assert station.control.receive(message("pause")) is not None
    assert len(station.done) == 4


def test_a_flood_costs_neither_memory_nor_messages() -> None:
    station = Station(per_minute=30)
    answers = 0
    for number in range(60_000):  # a hundred a second for ten minutes, each its own correlation
        station.clock.seconds += 0.01
        received = station.control.receive(message("pause", correlation=str(number).encode()))
        if isinstance(received, Order):
            received = station.control.execute(received, station.handlers)
        answers += received is not None
    assert len(station.done) == 300
    assert answers <= 300 + 600 + 1
    assert len(station.control._done) <= 300
    assert len(station.control._received) <= 30


def test_a_message_that_breaks_everything_does_not_end_the_network_thread(station: Station) -> None:
    class Broken(mqtt.MQTTMessage):
        @property
        def topic(self) -> str:
            raise MemoryError

    answer = station.control.receive(Broken())
    assert isinstance(answer, Answer)
    assert (answer.reply.error or "").startswith("internal: ")


def mostly(usual: st.SearchStrategy, odd: st.SearchStrategy) -> st.SearchStrategy:
    return st.integers(0, 9).flatmap(lambda n: odd if n == 9 else usual)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
NESTED = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
TIMES = st.sampled_from(["2024-05-01T12:00:01Z", "2030-01-01T00:00:00+01:00", "2024-05-01T11:59:59Z", "2024-05-01", ""])
THRESHOLDS = mostly(st.floats(0.001, 1e9), st.integers(-1, 10**10) | NESTED)
NAMES = mostly(st.text("abc ö", min_size=1, max_size=20), st.text(max_size=3) | st.integers(98, 102).map("x".__mul__))
OBJECTS = st.fixed_dictionaries(
    {"threshold": THRESHOLDS, "by": NAMES},
    optional={"id": st.text(max_size=66) | NESTED, "expires_at": TIMES | NESTED, "verb": NESTED},
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good command with a few bytes changed, left out or put in."""
    data = bytearray(json.dumps(draw(OBJECTS), ensure_ascii=False).encode(errors="surrogatepass"))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.integers(MAX_PAYLOAD - 40, MAX_PAYLOAD).map(lambda n: b" " * n + FORTY),
    NESTED.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    mutated(),
    mutated(),
    st.sampled_from([b"[", b'{"a":', b'{"by":[']).flatmap(lambda s: st.integers(1, 1400).map(lambda n: s * n)),
)


def truly_good(payload: bytes) -> bool:
    """Whether this is a set-threshold by the words of the documentation; says so without the station's models."""
    try:
        pairs: list[tuple[str, object]] = json.loads(payload.decode(), object_pairs_hook=list)
        value = dict(pairs)
    except (ValueError, TypeError, RecursionError):
        return False
    threshold, by, id_, until = (value.get(key) for key in ("threshold", "by", "id", "expires_at"))
    return (
        len(payload) <= MAX_PAYLOAD
        and len(pairs) == len(value)
        and set(value) <= {"threshold", "by", "id", "expires_at"}
        and type(threshold) in {int, float}
        and 0 < threshold <= 1e9  # type: ignore[operator]  # known by now
        and isinstance(by, str)
        and 1 <= len(by) <= 100
        and by.isprintable()
        and (id_ is None or (isinstance(id_, str) and 1 <= len(id_) <= 64 and id_.isprintable()))
        and (until is None or isinstance(until, str))
    )


LETTERS = st.builds(
    message,
    mostly(st.just("set-threshold"), st.sampled_from(VERBS) | st.text(max_size=40)).map(str.encode),
    PAYLOADS,
    to=mostly(st.none(), st.text(max_size=30)),
    correlation=mostly(st.none(), st.binary(max_size=8)),
    expiry=mostly(st.none(), st.integers(0, 2**32 - 1)),
    retain=mostly(st.just(False), st.just(True)),
)


@pytest.mark.slow
@settings(max_examples=2_000, suppress_health_check=list(HealthCheck), database=None)
@given(st.tuples(*[LETTERS] * 5))
def test_ten_thousand_payloads(letters: tuple[mqtt.MQTTMessage, ...]) -> None:
    station = Station()
    for letter in letters:
        done = len(station.done)
        answer = station.answer(letter)  # which also asserts that there is one
        reply = answer.reply
        event("done" if reply.ok else (reply.error or "").split(":")[0])
        sent = reply.payload()
        assert len(sent) < 2000
        assert json.loads(sent)["ok"] == reply.ok == (reply.error is None)
        assert len(reply.error or "") <= 300
        assert not (reply.error or "").startswith("internal")
        assert len(station.done) - done <= reply.ok  # less: the same command again
        verb, to = letter.topic.rpartition("/cmd/")[2], getattr(letter.properties, "ResponseTopic", None)
        good = verb == "set-threshold" and truly_good(letter.payload)
        if reply.ok:
            assert not letter.retain
            assert verb in VERBS
            assert answer.response_topic == to
            assert good or verb != "set-threshold"
        elif good and not letter.retain and to is None:
            # Nothing good is refused either, unless for its time (in forms that this oracle does not know) or its id.
            assert (reply.error or "").startswith(("expired", "invalid: expires_at", "conflict"))


def test_settings_bound_the_rate() -> None:
    with pytest.raises(ValidationError):
        CommandSettings(per_minute=601)
