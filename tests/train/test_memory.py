"""Freed memory stays with the process."""

import resource
import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(400_000)
before = faults()
for _ in range(50):
    np.ones(400_000)  # 3.2 MB: below the size from which NumPy asks for huge pages
print(faults() - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_is_mapped_once_and_not_for_every_array():
    pages = 3_200_000 // resource.getpagesize()
    assert page_faults("give back") > 20 * pages
    assert page_faults("keep") < pages
