"""Another split of a data set's good images, made of links: what a list names is trained on, the rest is test/good.

Published figures are told for splits by name; those of the magnetic tiles for the list that came with DifferNet.

    python -m benchmarks.resplit DATA/magnetic-tile DATA/magnetic-tile/differnet_train_filenames.txt OUT
"""

import argparse
from pathlib import Path

from engines.images import find_images


def resplit(data: Path, names: Path, out: Path) -> tuple[int, int]:
    """Write the folder ``out`` in MVTec AD layout.

    Args:
        data: in MVTec AD layout; nothing of it is changed.
        names: file names of good images, one a line; of train/good and of test/good alike.
        out: must not exist yet.

    Returns:
        How many good images are trained on, and how many are tested.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the list names what is not there, or all or none of the good images.
    """
    good = {path.name: path for part in ("train", "test") for path in find_images(data / part / "good")}
    chosen = {line.strip() for line in names.read_text().splitlines() if line.strip()}
    if missing := chosen - good.keys():
        raise ValueError(f"{names}: {len(missing)} of {len(chosen)} names are no good images of {data}: {min(missing)}")
    if not chosen or chosen == good.keys():
        raise ValueError(f"{names}: must name some of the {len(good)} good images of {data}, and leave some")
    out.mkdir(parents=True)
    for part in ("train", "test"):
        (out / part / "good").mkdir(parents=True)
    for name, path in good.items():
        part = "train" if name in chosen else "test"
        (out / part / "good" / name).symlink_to(path.resolve())
    for folder in sorted((data / "test").iterdir()):
        if folder.is_dir() and folder.name != "good":
            (out / "test" / folder.name).symlink_to(folder.resolve())
    if (data / "ground_truth").is_dir():
        (out / "ground_truth").symlink_to((data / "ground_truth").resolve())
    return len(chosen), len(good) - len(chosen)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set in MVTec AD layout")
    parser.add_argument("names", type=Path, help="text file of the names to train on, one a line")
    parser.add_argument("out", type=Path, help="new folder; it links to the images")
    options = parser.parse_args()
    trained, tested = resplit(options.data, options.names, options.out)
    print(f"{options.out}: {trained} good images to train on, {tested} to test")


if __name__ == "__main__":
    main()
