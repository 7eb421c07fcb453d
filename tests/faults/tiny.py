"""The smallest run that learns, typed as a command in a process of its own.

Processes come from a server that has imported torch once: Python's start is most of a tiny run's time.
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from smallest import TINY as SMALL
from smallest import wait_only

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
TINY = (*SMALL, "backbone=gru", "checkpoint.every=16")
LIMIT = 120  # seconds for anything to happen
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("llmdreamer.training.loop", "llmdreamer.envs.factory", "hydra.main", "gymnasium"),
        *("torch._dynamo", "torch._meta_registrations", "matplotlib.backends.backend_agg"),
        "torch.distributed.tensor",
    ]
)


class Command:
    """`python run.py OVERRIDES`, typed in `cwd`; its streams go to a file there.

    Args:
        file_size: bytes that a file may have: what a full disk is to a process.
    """

    def __init__(self, cwd: Path, *overrides: str, file_size: int | None = None) -> None:
        self.log = cwd / "terminal.txt"
        self.process: BaseProcess = CONTEXT.Process(
            target=_type, args=(cwd, [*TINY, *overrides], self.log, file_size)
        )
        self.process.start()

    def wait(self, limit: float = LIMIT) -> tuple[int, str]:
        """Its exit code (negative: the signal that killed it) and all that was said."""
        self.process.join(limit)
        assert self.process.exitcode is not None, self.log.read_text()
        return self.process.exitcode, self.log.read_text()

    def send(self, signum: int) -> None:
        if self.process.is_alive():  # which also reaps it, so that its number is still its own
            os.kill(self.process.pid, signum)  # type: ignore[arg-type]

    def until(self, happened: Callable[[], bool], limit: float = LIMIT) -> bool:
        """Wait for something; False if the process ends before."""
        deadline = time.monotonic() + limit
        while not happened():
            if not self.process.is_alive():
                return happened()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)
        return True


def run(cwd: Path, *overrides: str, file_size: int | None = None) -> tuple[int, str]:
    return Command(cwd, *overrides, file_size=file_size).wait()


def _type(cwd: Path, overrides: list[str], log: Path, file_size: int | None) -> None:
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 (to the process's end)
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    import run as command
    from llmdreamer.tracking import tracker

    tracker._start_upload_process = wait_only
    torch.set_num_threads(1)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.argv = ["run.py", *overrides]
    sys.exit(command.main())
