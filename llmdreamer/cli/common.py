"""What the commands that look at a run afterwards share: how they are typed, and how they answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from llmdreamer.utils.errors import ConfigError


def make_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of `python -m llmdreamer COMMAND RUN_DIR [--trust PACKAGE ...]`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m llmdreamer {command}", description=description
    )
    parser.add_argument("run_dir", type=Path, help="the folder of a run, as its summary names it")
    parser.add_argument(
        "--trust", nargs="+", default=[], metavar="PACKAGE", help="whose code the run may name"
    )
    return parser


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises ConfigError if one of these arguments was given, and is below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be >= 1")


def answer(work: Callable[[], str]) -> int:
    """Print what `work` returns; the exit code: 0, or 2 after a line that says what is wrong."""
    try:
        print(work())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
