"""Text of --help: it names every group and option, and is short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.object_type import ObjectType

from hydra_plugins.llmdreamer_sweeper import SweepSpecSource
from llmdreamer.cli import group_options
from llmdreamer.config import GROUPS

ROOT = Path(os.environ["LLMDREAMER_ROOT"])


@pytest.fixture(scope="module")
def help_text(tmp_path_factory):
    # In a separate process, as a user runs it.
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--help"],
        cwd=tmp_path_factory.mktemp("help"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_help_names_every_option_of_every_group(help_text):
    for group in GROUPS:
        for option in group_options(group):
            assert re.search(rf"\b{group}=([\w|]+\|)?{option}\b", help_text), f"{group}={option}"


def test_help_is_short_and_names_sweeps_and_exit_codes(help_text):
    lines = help_text.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert "python run.py -m" in help_text
    assert "Exit codes" in help_text


def test_hydra_searches_only_the_sweeps_folder_of_the_checkout(tmp_path):
    for name in (".venv/lib/theirs.yml", "sweeps/mine.yaml", "docs/page.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("a: 1\n")
    source = SweepSpecSource("llmdreamer", f"llmdreamer://{tmp_path}")
    assert source.list("", ObjectType.GROUP) == ["sweeps"]
    assert source.list("", ObjectType.CONFIG) == []
    assert source.list("sweeps", None) == ["mine"]
    assert source.load_config("sweeps/mine").config == {"a": 1}
