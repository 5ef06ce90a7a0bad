"""The outbox on a real disk: order, bounds, restarts, and what becomes of it when the disk fails."""

from pathlib import Path

from station.outbox import Outbox, Parcel
from station.settings import OutboxSettings


def parcel(key: str, size: int = 100, *, image: bool = False) -> Parcel:
    payload = key.encode().ljust(size, b".")
    return Parcel("t", payload, 1, (), content_type="image/jpeg" if image else "application/json", key=key)


def drain(outbox: Outbox) -> list[str]:
    keys = []
    while (found := outbox.first()) is not None:
        keys.append(found.key)
        outbox.done(found)
    return keys


def test_first_in_first_out_across_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, OutboxSettings())
    for number in range(5):
        outbox.put(parcel(f"k{number}"))
    first = outbox.first()
    assert first is not None
    outbox.done(first)
    outbox.close()
    outbox = Outbox(tmp_path, OutboxSettings())
    outbox.put(parcel("k5"))
    assert len(outbox) == 5
    assert outbox.trouble is None
    assert drain(outbox) == ["k1", "k2", "k3", "k4", "k5"]
    assert (len(outbox), outbox.bytes) == (0, 0)
    outbox.close()
