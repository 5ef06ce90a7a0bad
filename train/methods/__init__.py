"""CBiGAN and the methods that the paper compares it with: one trainer and one bundle format for all.

Each has a file of its own, whose ``METHOD`` says how it differs. E, G and D are the same networks for all of them.
"""

import functools
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to load, and settings and Tab need only the names
    from train.methods.method import Method

METHODS = ("cbigan", "egbad", "double-ae", "ae-l2", "ae-ssim", "ganomaly", "f-anogan")


@functools.cache
def load(name: str) -> "Method":
    """The method of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r} is none of {', '.join(METHODS)}")
    method: Method = importlib.import_module(f"train.methods.{name.replace('-', '_')}").METHOD
    return method
