"""What a process is told about the machine, seen from what the system then counts."""

import resource

import pytest
import torch

from llmdreamer.training.machine import keep_freed_memory


def test_memory_that_was_freed_is_not_fetched_again():
    if not keep_freed_memory():
        pytest.skip("no glibc")

    def pages_fetched():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            tensor = torch.ones(2**22)  # 4096 pages of 4 KiB
            tensor = tensor + 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages_fetched()
    assert pages_fetched() < 2000
