"""Use of processors, memory and disk by the machine, read at intervals."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil
import torch

INTERVAL_SECONDS = 10.0


class SystemMonitor:
    """Readings for the record of a run. One takes about a millisecond; nothing runs in between."""

    def __init__(self, device: torch.device, folder: Path, every: float = INTERVAL_SECONDS) -> None:
        self.device = device
        self.folder = folder
        self.every = every
        self._process = psutil.Process()
        self._since, self._busy = time.monotonic(), self._processor_seconds()
        psutil.cpu_percent(None)  # the first value is meaningless

    def due(self) -> bool:
        """Return True if the last reading is `every` seconds old."""
        return time.monotonic() - self._since >= self.every

    def read(self) -> dict[str, float]:
        """Return metrics: present values, or means since the last reading."""
        now, busy = time.monotonic(), self._processor_seconds()
        cores = (busy - self._busy) / max(1e-9, now - self._since)
        self._since, self._busy = now, busy
        metrics = {
            "system/cpu_share": psutil.cpu_percent(None) / 100,
            "system/process_cores": cores,
            "system/memory_share": psutil.virtual_memory().percent / 100,
            "system/memory_bytes": float(self._resident_bytes()),
            "system/disk_free_bytes": float(shutil.disk_usage(self.folder).free),
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            metrics["system/gpu_memory_bytes"] = float(total - free)
            metrics["system/gpu_memory_share"] = (total - free) / total
        return metrics

    def _processor_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _resident_bytes(self) -> int:
        """Return the resident memory of this process and its children, such as environments."""
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                pass  # the process has ended since it was listed
        return total
