"""Readings of the machine, against what is known to happen."""

import subprocess
import sys
import time

import torch

from llmdreamer.training.system import SystemMonitor

CPU = torch.device("cpu")


def test_a_busy_process_is_told_in_cores(tmp_path):
    monitor = SystemMonitor(CPU, tmp_path)
    begin, used = time.monotonic(), time.process_time()
    while time.process_time() - used < 0.2:
        pass
    elapsed = time.monotonic() - begin
    cores = monitor.read()["system/process_cores"]
    # Processor time comes in ticks of a hundredth; the readings enclose what was measured.
    assert cores >= 0.15 / (elapsed + 1.0)
    time.sleep(0.2)
    assert monitor.read()["system/process_cores"] < cores


def test_what_is_held_by_a_process_that_was_started_counts(tmp_path):
    monitor = SystemMonitor(CPU, tmp_path)
    before = monitor.read()["system/memory_bytes"]
    code = "x = bytearray(b'x' * 200_000_000); print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert monitor.read()["system/memory_bytes"] > before + 190_000_000
        process.communicate(b"\n")


def test_shares_are_shares_and_a_reading_starts_the_clock_anew(tmp_path):
    monitor = SystemMonitor(CPU, tmp_path, every=0.0)
    assert monitor.due()
    found = monitor.read()
    assert all(0 <= found[f"system/{name}_share"] <= 1 for name in ("cpu", "memory"))
    assert found["system/disk_free_bytes"] > 0
    assert not SystemMonitor(CPU, tmp_path, every=3600.0).due()
