"""Run the command line in this process, which saves the seconds that a new process takes to start."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import run


@contextmanager
def command_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Yield a function that runs `run.py` with overrides in `folder`: exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLMDREAMER_FULL_ERROR", "0")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def command(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *overrides])
        code = run.main()
        return code, *capsys.readouterr()

    yield command
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
