"""The program that a user started: `python run.py` in a checkout, or the command `llmdreamer`.

Messages repeat it, and a sweep starts its runs with it. Everything follows from `sys.argv[0]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

COMMAND = "llmdreamer"
_MODULE_FILE = "__main__.py"  # sys.argv[0] of `python -m llmdreamer`


def child_program() -> list[str]:
    """Return the start of a command that trains one run as this process would, with absolute paths."""
    program = Path(sys.argv[0])
    if program.name == _MODULE_FILE:
        return [sys.executable, "-m", COMMAND, "train"]
    if _is_script(program):
        return [sys.executable, str(program.resolve())]
    return [sys.executable, str(program.resolve()), "train"]


def to_type(*, multirun: bool = False) -> str:
    """Return the start of a command, as a message tells the user to type it."""
    if _is_script(Path(sys.argv[0])):
        return f"python {Path(sys.argv[0]).name}" + (" -m" if multirun else "")
    return f"{COMMAND} {'sweep' if multirun else 'train'}"


def typed_words() -> list[str]:
    """Return the words of this process's command, in a form that can be typed again."""
    if _is_script(Path(sys.argv[0])):
        return ["python", *sys.argv]
    if sys.argv[1:2] == ["-m"]:
        return [COMMAND, "sweep", *sys.argv[2:]]
    return [COMMAND, "train", *sys.argv[1:]]


def _is_script(program: Path) -> bool:
    return program.suffix == ".py" and program.name != _MODULE_FILE
