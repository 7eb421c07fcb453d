"""The help names every group and option there is, and fits on a screen or so."""

import re

import pytest

from llmdreamer.cli import group_options
from llmdreamer.config import GROUPS


@pytest.fixture
def help_text(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        command("--help")
    return capsys.readouterr().out


def test_help_names_every_option_of_every_group(help_text):
    for group in GROUPS:
        for option in group_options(group):
            assert re.search(rf"\b{group}=([\w|]+\|)?{option}\b", help_text), f"{group}={option}"


def test_help_is_short_and_tells_of_sweeps_and_exit_codes(help_text):
    lines = help_text.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert "python run.py -m" in help_text
    assert "Exit codes" in help_text
