"""Completion in a real bash, with the script that `llmdreamer --completion` prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmdreamer.cli.command import COMMANDS, main

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
PRESS_TAB = """
source {script}
COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_llmdreamer_complete
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def press_tab(tmp_path, capsys):
    """Return a function that gives bash's answers to the tab key after a line."""
    assert main(["--completion"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    program = tmp_path / "llmdreamer"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmdreamer "$@"\n')
    program.chmod(0o755)

    def pressed(*words: str) -> list[str]:
        bash = PRESS_TAB.format(script=tmp_path / "script")
        return subprocess.run(
            ["bash", "-c", bash, "bash", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    return pressed


def test_tab_completes_commands(press_tab):
    assert press_tab("llmdreamer", "") == list(COMMANDS)
    assert press_tab("llmdreamer", "reg") == ["register"]


def test_tab_completes_options_after_sweep(press_tab):
    assert press_tab("llmdreamer", "sweep", "backbone=m") == ["backbone=mamba", "backbone=mamba2"]
