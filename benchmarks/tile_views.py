"""Names of good magnetic tiles to train on, such that no tile is seen in training and in the test.

Every view of a tile was photographed some six times in a row, under other exposures (exp1 to exp6 in the name), and the
number in the name counts. A split by name puts most views on both sides: a test of memory (docs/quality.md).

    python -m benchmarks.tile_views DATA/magnetic-tile NAMES.txt
    python -m benchmarks.resplit DATA/magnetic-tile NAMES.txt OUT
"""

import argparse
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from engines.images import find_images

SAME_VIEW = 200  # a number further on, another tile lies there; exposures of one view are 10 to 60 apart
EVERY = 5  # of the views, each fifth is for the test


def views(names: Iterable[str]) -> list[list[str]]:
    """Names such as ``exp3_num_116541.jpg``, those of one view together, in the order in which they were taken.

    Raises:
        ValueError: a name without its number.
    """
    numbered = []
    for name in names:
        number = re.search(r"_num_(\d+)", name)
        if number is None:
            raise ValueError(f"{name}: no number as in exp3_num_116541.jpg")
        numbered.append((int(number[1]), name))
    numbered.sort()
    found = [[name] for _, name in numbered[:1]]
    for (before, _), (number, name) in pairwise(numbered):
        if number - before > SAME_VIEW:
            found.append([])
        found[-1].append(name)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the magnetic tiles in MVTec AD layout")
    parser.add_argument("names", type=Path, help="text file to write, a name a line")
    options = parser.parse_args()
    good = [path.name for part in ("train", "test") for path in find_images(options.data / part / "good")]
    found = views(good)
    trained = [name for i, view in enumerate(found) if i % EVERY != EVERY - 1 for name in view]
    options.names.write_text("\n".join(trained) + "\n")
    print(f"{options.names}: {len(trained)} of {len(good)} good images, {len(found)} views; each fifth is for the test")


if __name__ == "__main__":
    main()
