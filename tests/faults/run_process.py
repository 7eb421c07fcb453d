"""Start the smallest run as a command in a separate process.

Processes are forked from a server that has imported torch: the imports take most of a tiny run's time.
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
from tiny_run import TINY as TINY_RUN
from tiny_run import start_idle_uploader

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
TINY = (*TINY_RUN, "backbone=gru", "checkpoint.every=16")
TIMEOUT_SECONDS = 120
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("llmdreamer.training.loop", "llmdreamer.envs.factory", "hydra.main", "gymnasium"),
        *("torch._dynamo", "torch._meta_registrations", "matplotlib.backends.backend_agg"),
        "torch.distributed.tensor",
    ]
)


class Command:
    """A process that runs `python run.py OVERRIDES` in `cwd`, with its output in a file there.

    Args:
        file_size: largest size of a file in bytes; imitates a full disk.
        output: "full disk" or "closed pipe": what standard output is, instead of the file.
        shape: overrides that come first; they make the run small.
    """

    def __init__(
        self,
        cwd: Path,
        *overrides: str,
        file_size: int | None = None,
        output: str | None = None,
        shape: tuple[str, ...] = TINY,
    ) -> None:
        self.log = cwd / "terminal.txt"
        self.process: BaseProcess = CONTEXT.Process(
            target=_run_command, args=(cwd, [*shape, *overrides], self.log, file_size, output)
        )
        self.process.start()

    def wait(self, timeout: float = TIMEOUT_SECONDS) -> tuple[int, str]:
        """Return the exit code (negative: the signal that killed the process) and the output."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, self.log.read_text()
        return self.process.exitcode, self.log.read_text()

    def send(self, signum: int) -> None:
        if self.process.is_alive():  # also reaps it, so that the pid is not reused
            os.kill(self.process.pid, signum)  # type: ignore[arg-type]

    def wait_until(self, condition: Callable[[], bool], timeout: float = TIMEOUT_SECONDS) -> bool:
        """Wait for a condition. Return False if the process ends before it holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.process.is_alive():
                return condition()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)
        return True


def run(cwd: Path, *overrides: str, file_size: int | None = None) -> tuple[int, str]:
    return Command(cwd, *overrides, file_size=file_size).wait()


def _run_command(
    cwd: Path, overrides: list[str], log: Path, file_size: int | None, output: str | None
) -> None:
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 (open until the process ends)
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    if output is not None:
        os.dup2(_broken_output(output), 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    import run as run_module
    from llmdreamer.tracking import tracker

    tracker._start_upload_process = start_idle_uploader
    torch.set_num_threads(1)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.argv = ["run.py", *overrides]
    sys.exit(run_module.main())


def _broken_output(kind: str) -> int:
    """Return a file descriptor to which nothing can be written."""
    if kind == "full disk":
        return os.open("/dev/full", os.O_WRONLY)
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end
