"""The command line in this process, without the seconds that a new one takes to start."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import run


@contextmanager
def typing_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`typed("model=Q")` in `folder`: exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLMDREAMER_FULL_ERROR", "0")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def typed(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *argv])
        code = run.main()
        return code, *capsys.readouterr()

    yield typed
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
