"""``python -m train`` is ``station-train``."""

from train.cli import main

main()
