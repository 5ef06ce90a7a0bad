"""What must not get lost on the way to the broker: alerts and their pictures. One place, so far in memory.

A parcel stays until the broker has acknowledged it. The bound is on bytes, and only ever reached when the broker
is away for long: pictures go first, then the oldest alerts, and what went is counted.
"""

import threading
from collections import deque
from dataclasses import dataclass
from datetime import timedelta

MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A message as it goes over the wire.

    Attributes:
        topic: full topic.
        expiry: how long the broker keeps it for a subscriber who is away (MQTT 5).
        properties: user properties (MQTT 5).
    """

    topic: str
    payload: bytes
    qos: int
    properties: tuple[tuple[str, str], ...]
    retain: bool = False
    content_type: str = "application/json"
    expiry: timedelta | None = None


class Outbox:
    """First in, first out; safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parcels: deque[Parcel] = deque()
        self._bytes = 0
        self._dropped = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._parcels)

    @property
    def dropped(self) -> int:
        """How many parcels had to go for want of room."""
        return self._dropped

    def put(self, parcel: Parcel) -> None:
        """Take a parcel; makes room for it first if need be."""
        with self._lock:
            while self._parcels and self._bytes + len(parcel.payload) > self._max_bytes:
                pictures = (held for held in self._parcels if held.content_type != "application/json")
                self._remove(next(pictures, self._parcels[0]))
                self._dropped += 1
            self._parcels.append(parcel)
            self._bytes += len(parcel.payload)

    def first(self) -> Parcel | None:
        """The oldest parcel; it stays until ``done``."""
        with self._lock:
            return self._parcels[0] if self._parcels else None

    def done(self, parcel: Parcel) -> None:
        """The broker has it: let it go."""
        with self._lock:
            if parcel in self._parcels:  # it may have been dropped meanwhile
                self._remove(parcel)

    def _remove(self, parcel: Parcel) -> None:
        self._parcels.remove(parcel)
        self._bytes -= len(parcel.payload)
