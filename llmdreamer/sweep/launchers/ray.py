"""Runs as tasks of Ray. Ray itself lives in a process beside the driver (rayhand.py).

Whatever Ray does there (it may wait for minutes, or abort), the driver goes on, and ends.
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

from llmdreamer.sweep.launchers.base import EngineLost, Job, Order
from llmdreamer.sweep.launchers.mailbox import Placed, Posted
from llmdreamer.sweep.run_folder import OUTPUT_LOG
from llmdreamer.sweep.settings import RaySettings
from llmdreamer.utils.errors import ConfigError

# Ray starts half a dozen processes; on a machine at its limit that has taken more than a minute.
REACHED_WITHIN = 180.0
CLOSED_WITHIN = 30.0
# What Ray says when an agent of its own was not there in time, for which it waits 15 seconds: the machine is
# crowded, and it may be less so at the next start.
LATE = "timed out during startup"
STARTS = 3


class RayEngine:
    """A task of Ray's for each process."""

    def __init__(self, settings: RaySettings, sweep: Path, heartbeat: int) -> None:
        init, options = _given(settings.init), _given(settings.remote)
        _reach(init.get("address"))
        for _ in range(STARTS):
            refused = self._begin(init, options)
            if refused is None or LATE not in refused:
                break
        if refused is not None:
            raise ConfigError(f"hydra/launcher=ray: {refused}")
        self._posted = Posted(sweep, heartbeat)

    def _begin(self, init: dict[str, Any], options: dict[str, Any]) -> str | None:
        """None if Ray is there, else the reason why not; no process is then left."""
        self._hand = Hand(
            [sys.executable, "-m", "llmdreamer.sweep.launchers.ray_worker"], (init, options)
        )
        try:
            refused = self._hand.first_word(REACHED_WITHIN)
        except BaseException:
            self._hand.close(0)
            raise
        if refused is not None:
            self._hand.close(0)
        return refused

    def start(self, order: Order) -> Job:
        errand = self._posted.errand(order)
        key = errand.box.name
        # Workers have the environment in which somebody started the cluster.
        self._hand.ask("start", key, errand, dict(os.environ))
        return Placed(
            errand.box,
            lambda: self._hand.is_over(key),
            lambda: self._hand.tell("cancel", key),
            lambda: self._hand.why(key),
            order.folder / OUTPUT_LOG,
            errand.heartbeat,
        )

    def close(self) -> None:
        self._posted.close()
        self._hand.close(CLOSED_WITHIN)


class Hand:
    """A child process that is asked for things and says, in its time, which of them are over."""

    def __init__(self, command: list[str], first: object) -> None:
        # What it prints: only its last line matters. `close` closes it.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # a Ctrl-C is ours
        )
        self._first: queue.Queue[str | None] = queue.Queue()
        self._over: dict[str, str] = {}  # keys, and why, of those that failed
        self._is_gone = threading.Event()
        self._send(first)
        threading.Thread(target=self._hear, daemon=True).start()

    def first_word(self, within: float) -> str | None:
        """None if all is well, else the reason why not; also where there is none for so many seconds."""
        try:
            return self._first.get(timeout=within)
        except queue.Empty:
            return f"no answer within {within:g} seconds"

    def ask(self, *request: object) -> None:
        """Ask for something.

        Raises:
            EngineLost: if the process has died.
        """
        if not self._send(request):
            raise EngineLost(f"hydra/launcher=ray: the connection is lost: {self._last_line()}")

    def tell(self, *request: object) -> None:
        """Ask for something that has no object once the process has died."""
        self._send(request)

    def is_over(self, key: str) -> bool:
        return key in self._over or self._is_gone.is_set()

    def why(self, key: str) -> str:
        """What became of a task that is over and did not do its work; empty if it did."""
        return self._over.get(key, "")

    def close(self, within: float) -> None:
        """Have it leave, for so many seconds; then make it."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()  # what Ray has started here ends by itself then
            self._process.wait()
        self._said.close()

    def _send(self, message: object) -> bool:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except (OSError, ValueError):  # its end of the pipe is closed, or ours
            return False
        return True

    def _hear(self) -> None:
        assert self._process.stdout is not None
        try:
            self._first.put(pickle.load(self._process.stdout))  # noqa: S301  (from our child)
            while True:
                key, why = pickle.load(self._process.stdout)  # noqa: S301
                self._over[key] = why
        except (EOFError, OSError, pickle.UnpicklingError):
            self._first.put(self._last_line())
        self._is_gone.set()

    def _last_line(self) -> str:
        try:
            size = os.fstat(self._said.fileno()).st_size
            text = os.pread(self._said.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
        except (OSError, ValueError):  # closed
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


def _reach(address: object) -> None:
    """Refuse an address where nobody answers: Ray itself would wait for minutes, and then abort."""
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto`, `local` or none: Ray looks, and says so
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"hydra.launcher.init.address={address}: {error}") from error


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
