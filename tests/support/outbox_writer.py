"""A program to be killed: puts parcels into an outbox and tells each when it is safe, lets some go and tells before.

``python -m tests.support.outbox_writer FOLDER PREFIX``: keys are PREFIX-1, PREFIX-2 …
"""

import itertools
import random
import sys
from pathlib import Path

from station.outbox import Outbox, Parcel
from station.settings import OutboxSettings


def write(folder: Path, prefix: str) -> None:
    outbox = Outbox(folder, OutboxSettings())
    assert outbox.trouble is None, outbox.trouble
    for number in itertools.count(1):
        key = f"{prefix}-{number}"
        size = random.choice((300, 900, 60_000, 300_000))
        outbox.put(Parcel("t", key.encode().ljust(size, b"."), 1, (), key=key, alert=key))
        print("safe", key, flush=True)
        if number % 3 == 0 and (first := outbox.first()) is not None:
            print("gone", first.key, flush=True)
            outbox.done(first)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
