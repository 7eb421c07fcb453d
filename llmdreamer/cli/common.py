"""Argument parsing and exit codes shared by the commands that read a finished run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact_message


def make_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `llmdreamer COMMAND RUN_DIR [--trust PACKAGE ...]`."""
    parser = argparse.ArgumentParser(prog=f"llmdreamer {command}", description=description)
    parser.add_argument("run_dir", type=Path, help="the folder of a run")
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="packages whose code the run may use",
    )
    return parser


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError if one of these arguments is given and below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be >= 1")


def print_result(work: Callable[[], str]) -> int:
    """Print the result of `work` and return 0, or print its ConfigError and return 2."""
    try:
        print(work())
    except ConfigError as error:
        print(redact_message(str(error)), file=sys.stderr)
        return error.exit_code
    return 0
