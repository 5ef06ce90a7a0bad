"""From the broker to the dashboard: topics and payloads, which anybody with the right to publish may have made up."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from station.messages import Alert, Feedback, Health, Info, Message, Reply, Score, Status

MAX_JSON = 64 * 2**10  # bytes; an alert with all its patches has 8 KiB
MAX_PICTURE = 8 * 2**20  # bytes; a station's JPEG has a tenth of it
MAX_FRAME = 32 * 2**20  # bytes; a PNG of 4K has 16 MiB
_LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_KINDS: dict[str, type[Message]] = {kind.topic: kind for kind in (Status, Info, Score, Alert, Health, Feedback)}


class NotOursError(Exception):
    """A message that says nothing to a dashboard; why."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a station.

    Attributes:
        kind: of an alert (``image``: JPEG, ``frame``: PNG) or a ``snapshot`` (JPEG).
        id: of the alert or snapshot.
    """

    kind: Literal["image", "frame", "snapshot"]
    id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """The retained status was cleared: the station was taken out of service."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One message.

    Attributes:
        station: ``site/line/name``.
        what: what it says.
    """

    station: str
    what: Message | Picture | Gone


class Stations:
    """Which stations are ours: ``site/line/name``, each level a name or ``+``."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self._levels = [pattern.split("/") for pattern in self.patterns]

    def __contains__(self, station: str) -> bool:
        levels = station.split("/")
        return any(
            len(levels) == 3 and all(wanted in ("+", level) for wanted, level in zip(pattern, levels, strict=True))
            for pattern in self._levels
        )


def is_id(text: str) -> bool:
    """Whether it may be the id of an alert or one level of a station's path."""
    return _LEVEL.fullmatch(text) is not None


def read(prefix: str, topic: str, payload: bytes) -> Heard:
    """Understand a message.

    Raises:
        NotOursError: it is none of ours, or malformed.
    """
    if not topic.startswith(f"{prefix}/"):
        raise NotOursError("outside our topics")
    levels = topic[len(prefix) + 1 :].split("/")
    if len(levels) < 4 or not all(map(is_id, levels)):
        raise NotOursError("no topic of a station")
    station, rest = "/".join(levels[:3]), levels[3:]
    match rest:
        case ["alert", id_, "image"]:
            return Heard(station, _picture("image", id_, payload, _JPEG, MAX_PICTURE))
        case ["alert", id_, "frame"]:
            return Heard(station, _picture("frame", id_, payload, _PNG, MAX_FRAME))
        case ["snapshot", id_, "image"]:
            return Heard(station, _picture("snapshot", id_, payload, _JPEG, MAX_PICTURE))
        case ["reply", _]:
            return Heard(station, _parse(Reply, payload))
        case ["status"] if not payload:
            return Heard(station, Gone())
        case [kind] if kind in _KINDS:
            message = _parse(_KINDS[kind], payload)
            alert = message.id if isinstance(message, Alert) else getattr(message, "alert", "")
            if alert and not is_id(alert):  # it becomes a part of addresses and file names
                raise NotOursError("an alert's id must be fit for a topic")
            return Heard(station, message)
    raise NotOursError("nothing that a dashboard shows")


def _picture(kind: Literal["image", "frame", "snapshot"], id_: str, payload: bytes, magic: bytes, most: int) -> Picture:
    if len(payload) > most:
        raise NotOursError(f"a picture of {len(payload)} bytes; at most {most}")
    if not payload.startswith(magic):
        raise NotOursError("no picture of the kind that belongs there")
    return Picture(kind, id_, payload)


def _parse(model: type[Message], payload: bytes) -> Message:
    if len(payload) > MAX_JSON:
        raise NotOursError(f"{len(payload)} bytes of JSON; at most {MAX_JSON}")
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if any(problem["type"] != "extra_forbidden" for problem in problems):
            raise NotOursError(f"{model.topic}: {problems[0]['msg']}") from None
    except (ValueError, OverflowError) as error:  # numbers and dates beyond what Python's own can be
        raise NotOursError(f"{model.topic}: {type(error).__name__}") from None
    # A newer station may say more than we know: within one schema, keys are only ever added.
    return _parse_known(model, payload, [problem["loc"] for problem in problems])


def _parse_known(model: type[Message], payload: bytes, unknown: list[tuple[int | str, ...]]) -> Message:
    try:
        value = json.loads(payload)
        for *parents, key in unknown:
            owner = value
            for name in parents:
                owner = owner[name]
            owner.pop(key, None)
        return model.model_validate_json(json.dumps(value))
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NotOursError(f"{model.topic}: {type(error).__name__}") from None
