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
def step():
    # 20 arrays of 3.2 MB, below the size from which NumPy asks for huge pages; freed together
    arrays = [np.ones(400_000) for _ in range(20)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
before = faults()
for _ in range(20):
    step()
print(faults() - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_is_mapped_once_and_not_for_every_array():
    pages = 20 * 3_200_000 // resource.getpagesize()
    assert page_faults("give back") > 10 * pages
    assert page_faults("keep") < pages
