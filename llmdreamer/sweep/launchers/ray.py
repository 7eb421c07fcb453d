"""The Ray launcher: each process is a Ray task.

Ray itself runs in a child process (ray_worker.py). Ray may block for minutes, or abort its process;
the driver is not affected and can still end.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmdreamer.sweep.launchers.base import Job, LauncherLost, ProcessSpec
from llmdreamer.sweep.launchers.mailbox import JobMailbox, RemoteJob
from llmdreamer.sweep.run_folder import OUTPUT_LOG
from llmdreamer.sweep.settings import RaySettings
from llmdreamer.utils.errors import ConfigError

# Ray starts about six processes. On an overloaded machine this took more than a minute.
START_TIMEOUT_SECONDS = 180.0
CLOSE_TIMEOUT_SECONDS = 30.0
# Part of Ray's error if one of its own processes, called agents, does not start within 15 seconds. A new
# attempt may succeed.
AGENT_TIMED_OUT = "timed out during startup"
MAX_STARTS = 3


class RayLauncher:
    """Starts each process as a Ray task."""

    def __init__(
        self, settings: RaySettings, sweep_folder: Path, heartbeat_seconds: int, stop_within: float
    ) -> None:
        init, options = _without_none(settings.init), _without_none(settings.remote)
        _check_address(init.get("address"))
        for _ in range(MAX_STARTS):
            error = self._start_client(init, options)
            if error is None or AGENT_TIMED_OUT not in error:
                break
        if error is not None:
            raise ConfigError(f"hydra/launcher=ray: {error}")
        self._mailbox = JobMailbox(sweep_folder, heartbeat_seconds, stop_within)

    def _start_client(self, init: dict[str, Any], options: dict[str, Any]) -> str | None:
        """Return None once Ray is ready; else end the client's process and return the error."""
        self._client = RayClient(
            [sys.executable, "-m", "llmdreamer.sweep.launchers.ray_worker"], (init, options)
        )
        try:
            error = self._client.wait_ready(START_TIMEOUT_SECONDS)
        except BaseException:
            self._client.close(0)
            raise
        if error is not None:
            self._client.close(0)
        return error

    def start(self, process: ProcessSpec) -> Job:
        job = self._mailbox.new_job(process)
        key = job.job_dir.name
        # Ray's workers inherit the environment in which the cluster was started, not the driver's.
        self._client.request("start", key, job, dict(os.environ))
        return RemoteJob(
            job.job_dir,
            lambda: self._client.is_over(key),
            lambda: self._client.request_if_alive("cancel", key),
            lambda: self._client.failure_reason(key),
            process.folder / OUTPUT_LOG,
            job.heartbeat_seconds,
        )

    def close(self) -> None:
        self._mailbox.close()
        self._client.close(CLOSE_TIMEOUT_SECONDS)


class RayClient:
    """Connection of the driver to a child process that starts Ray tasks and reports the ended ones."""

    def __init__(self, command: list[str], first_request: object) -> None:
        # Standard error of the child; its last line is the reason of a failure. `close` closes the file.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            start_new_session=True,  # Ctrl-C reaches the driver only
        )
        self._first_answer: queue.Queue[str | None] = queue.Queue()
        self._finished: dict[str, str] = {}  # by task key: why it failed, or ""
        self._is_lost = threading.Event()
        self._send(first_request)
        threading.Thread(target=self._read_answers, daemon=True).start()

    def wait_ready(self, timeout_seconds: float) -> str | None:
        """Return None once Ray is ready, or else the error; no answer in time is an error too."""
        try:
            return self._first_answer.get(timeout=timeout_seconds)
        except queue.Empty:
            return f"no answer within {timeout_seconds:g} seconds"

    def request(self, *request: object) -> None:
        """Send a request.

        Raises:
            LauncherLost: if the process has died.
        """
        if not self._send(request):
            raise LauncherLost(f"hydra/launcher=ray: the connection is lost: {self._last_line()}")

    def request_if_alive(self, *request: object) -> None:
        """Send a request that is void once the process has died."""
        self._send(request)

    def is_over(self, key: str) -> bool:
        return key in self._finished or self._is_lost.is_set()

    def failure_reason(self, key: str) -> str:
        """Return why a task failed; empty if it succeeded, or is not over."""
        return self._finished.get(key, "")

    def close(self, timeout_seconds: float) -> None:
        """Ask the process to exit; kill it after the timeout."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()  # a cluster that Ray started here then ends by itself
            self._process.wait()
        self._output.close()

    def _send(self, message: object) -> bool:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except (OSError, ValueError):  # the pipe is closed, at its end or ours
            return False
        return True

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        try:
            self._first_answer.put(pickle.load(self._process.stdout))  # noqa: S301  (from our child)
            while True:
                key, reason = pickle.load(self._process.stdout)  # noqa: S301
                self._finished[key] = reason
        except (EOFError, OSError, pickle.UnpicklingError):
            self._first_answer.put(self._last_line())
        self._is_lost.set()

    def _last_line(self) -> str:
        try:
            size = os.fstat(self._output.fileno()).st_size
            text = os.pread(self._output.fileno(), 4096, max(0, size - 4096)).decode(
                errors="replace"
            )
        except (OSError, ValueError):  # the file is closed
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "its process printed nothing"


def _check_address(address: object) -> None:
    """Reject an address that does not answer: Ray itself would wait for minutes, then abort."""
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto`, `local` or none: Ray finds the cluster or reports an error
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"hydra.launcher.init.address={address}: {error}") from error


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
