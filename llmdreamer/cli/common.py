"""Argument parsing and exit codes shared by the commands that read a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_error, print_line

LATEST = "latest"
OUTPUTS = "outputs"  # the default of output_root
POLICY_FOLDERS = ("checkpoints", "best")
"""Folders of a run's last policy and of its best one, by `--best`."""
# outputs/NAME, outputs/cells/NAME, outputs/sweeps/NAME/TRIAL, and seed-N below it
_DEPTHS = ("*", "*/*", "*/*/*", "*/*/*/*")

SEEDS = 2**32  # numpy's limit
_ROOM = "x" * 100  # the files of a run have longer names than its folder
_SHOWN = 60  # characters of a name that cannot exist


def make_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `llmdreamer COMMAND RUN_DIR [--trust PACKAGE ...]`."""
    parser = argparse.ArgumentParser(prog=f"llmdreamer {command}", description=description)
    parser.add_argument(
        "run_dir",
        type=Path,
        metavar="RUN",
        help=f"the folder of a run, or '{LATEST}': the run below {OUTPUTS}/ that started or resumed last",
    )
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="packages whose code the run may use",
    )
    return parser


def add_best(parser: argparse.ArgumentParser) -> None:
    """Add `--best`."""
    parser.add_argument(
        "--best", action="store_true", help="the best policy of the run instead of the last"
    )


def find_run(named: Path) -> Path:
    """Return the folder of a run that the user named; `latest` is the one that started or resumed last.

    Raises:
        ConfigError: if there is no run, or no path can have this name.
    """
    check_path(named)
    if named != Path(LATEST) or named.is_dir():
        return named
    started = {
        path.parent: path.stat().st_mtime
        for depth in _DEPTHS
        for path in Path(OUTPUTS).glob(f"{depth}/config.yaml")
        if (path.parent / POLICY_FOLDERS[0]).is_dir()
    }
    if not started:
        raise ConfigError(
            f"{LATEST}: no run below {Path(OUTPUTS).resolve()}; give the folder of a run"
        )
    folder = max(started, key=lambda path: started[path])
    print_error(f"{LATEST}: {folder}")
    return folder


def find_sweep_or_latest(named: str, root: Path) -> Path:
    """Return the folder of a sweep by name or path; `latest` is the one below `root` that started last.

    Raises:
        ConfigError: if there is no such sweep, or no path can have this name.
    """
    # Imported here, because most commands read no sweep.
    from llmdreamer.sweep.status import find_sweep, latest_sweep

    check_path(named)
    if named != LATEST or Path(LATEST).is_dir():
        return find_sweep(named, root)
    folder = latest_sweep(root)
    if folder is None:
        raise ConfigError(
            f"{LATEST}: no sweep below {(root / 'sweeps').resolve()}; give the folder of a sweep"
        )
    print_error(f"{LATEST}: {folder}")
    return folder


def check_path(named: Path | str) -> None:
    """Raise ConfigError if the system refuses this name of a file or folder, which need not exist."""
    try:
        (Path(named) / _ROOM).exists()
    except (OSError, ValueError) as error:  # too long, or a null character
        reason = error.strerror if isinstance(error, OSError) else error
        shown = str(named)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}... ({len(shown)} characters)"
        raise ConfigError(f"{shown!r} cannot be the name of a file or folder: {reason}") from error


def check_seed(seed: int | None) -> None:
    """Raise ConfigError if `--seed` is given and is not a seed."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise ConfigError(f"--seed {seed}: must be from 0 to {SEEDS - 1}")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError if one of these arguments is given and below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be >= 1")


def run_command(args: argparse.Namespace, work: Callable[[argparse.Namespace], str]) -> int:
    """Print the result of `work` for the run that `args` name and return 0.

    After an error with an exit code, such as a ConfigError, print its line and return the code.
    """
    try:
        args.run_dir = find_run(args.run_dir)
        print_line(work(args))
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        print_error(str(error))
        return code
    return 0
