"""Server-sent events: what changes goes to every browser that listens. Belongs to the event loop's thread."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator

RETRY_MS = 1000  # after which a browser that has lost us tries again
PING_SECONDS = 5
MAX_LISTENERS = 200
_MOST_WAITING = 2000  # events; half a minute of twenty busy stations


class Listener:
    """One browser."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._over = False

    def put(self, event: bytes) -> None:
        """Another event. One that does not keep up is cut off: it connects anew and asks for all."""
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.clear()
            self._over = True
        if not self._over:
            self._waiting.append(event)
        self._news.set()

    def close(self) -> None:
        """No more."""
        self._over = True
        self._news.set()

    async def events(self) -> AsyncIterator[bytes]:
        """As they come, until closed."""
        while not self._over:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                yield self._waiting.popleft()


class Events:
    """All browsers that listen."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    def join(self) -> Listener:
        """A new one; the caller lets it ``leave``."""
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """It is gone."""
        self._listeners.discard(listener)

    def send(self, name: str, data: object) -> None:
        """An event to all."""
        if self._listeners:
            event = encode(name, data)
            for listener in self._listeners:
                listener.put(event)

    def close(self) -> None:
        """The end: every stream ends, so that the server can."""
        for listener in self._listeners:
            listener.close()


def encode(name: str, data: object, retry: int | None = None) -> bytes:
    """An event as it goes over the wire; JSON has no line ends."""
    told = "" if retry is None else f"retry: {retry}\r\n"
    return f"{told}event: {name}\r\ndata: {json.dumps(data, separators=(',', ':'))}\r\n\r\n".encode()
