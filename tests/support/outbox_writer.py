"""A program to be killed: puts alerts with pictures into an outbox, tells when they are safe, and lets some go.

What it lets go it tells before.

``python -m tests.support.outbox_writer FOLDER PREFIX``: keys are PREFIX-1 and, for its picture, PREFIX-1-1, and so on.
"""

import itertools
import random
import sys
from pathlib import Path

from station.outbox import Outbox
from station.outbox_store import Parcel
from station.settings import OutboxSettings


def write(folder: Path, prefix: str) -> None:
    outbox = Outbox(folder, OutboxSettings(max_mib=4096))  # room for all: what is dropped would look like a loss
    assert outbox.trouble is None, outbox.trouble
    for number in itertools.count(1):
        key = f"{prefix}-{number}"
        size = random.choice((300, 900, 60_000, 300_000))
        picture = f"{key}-1"
        outbox.put(
            Parcel("t", key.encode().ljust(800, b"."), 1, (), key=key, alert=key),
            Parcel("t", picture.encode().ljust(size, b"."), 1, (), content_type="image/jpeg", key=picture),
        )
        print(f"safe {key}\nsafe {picture}", flush=True)
        if number % 3 == 0 and (first := outbox.first()) is not None:
            print("gone", first.key, flush=True)
            outbox.done(first)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
