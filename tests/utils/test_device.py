"""Process settings of `utils.device`, measured by what the operating system counts."""

import os
import subprocess
import sys

import pytest

from llmdreamer.utils.device import keep_freed_memory

# A process of its own: in the heap of one that ran a thousand tests, any block may find no room.
PAGES_FETCHED = """
import resource
import torch
from llmdreamer.utils.device import keep_freed_memory

def pages_fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        tensor = torch.ones(2**22)  # 16 MiB
        tensor = tensor + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

# The least of some: where a heap puts a block first is chance, and then it grows once more.
given_back = min(pages_fetched() for _ in range(5))
keep_freed_memory()
kept = min(pages_fetched() for _ in range(5))
print(given_back, kept)
"""


def test_memory_that_was_freed_is_not_fetched_again():
    if not keep_freed_memory():
        pytest.skip("no glibc")

    # Left to itself, glibc raises the size it gives back: when, depends on the heap.
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    printed = subprocess.check_output([sys.executable, "-c", PAGES_FETCHED], text=True, env=environ)

    given_back, kept = map(int, printed.split())
    assert kept < given_back / 4
