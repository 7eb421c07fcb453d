"""Compares system metrics with a known load."""

import subprocess
import sys
import time

import torch

from llmdreamer.training.system import SystemMonitor

CPU = torch.device("cpu")


def test_busy_process_is_counted_in_cores(tmp_path):
    monitor = SystemMonitor(CPU, tmp_path)
    begin, used = time.monotonic(), time.process_time()
    while time.process_time() - used < 0.2:
        pass
    elapsed = time.monotonic() - begin
    cores = monitor.read()["system/process_cores"]
    # CPU time has a resolution of 0.01 s, and the monitor's interval is longer than the measured one.
    assert cores >= 0.15 / (elapsed + 1.0)
    time.sleep(0.2)
    assert monitor.read()["system/process_cores"] < cores


def test_memory_of_child_processes_is_counted(tmp_path):
    monitor = SystemMonitor(CPU, tmp_path)
    before = monitor.read()["system/memory_bytes"]
    code = "x = bytearray(b'x' * 200_000_000); print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert monitor.read()["system/memory_bytes"] > before + 190_000_000
        process.communicate(b"\n")


def test_system_shares_are_in_zero_to_one_and_due_waits_for_interval(tmp_path):
    monitor = SystemMonitor(CPU, tmp_path, every=0.0)
    assert monitor.due()
    metrics = monitor.read()
    assert all(0 <= metrics[f"system/{name}_share"] <= 1 for name in ("cpu", "memory"))
    assert metrics["system/disk_free_bytes"] > 0
    assert not SystemMonitor(CPU, tmp_path, every=3600.0).due()
