"""Printed commands must survive a shell and Hydra's grammar, whatever the name of the folder."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from llmdreamer.tracking.store import ui_command
from llmdreamer.tracking.upload_loop import sync_command
from llmdreamer.utils.command_line import argument, resume_command

ROOT = Path(__file__).parents[2]
SPECIAL = "ab/\\'\"${}[]():,=#~%@*?!&; |<>\té."
TEXTS = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(exclude_categories=["Cc", "Cs"])))


def as_read(words: str) -> object:
    """Return the value of the only override that a shell finds in these words."""
    (word,) = shlex.split(words)
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    return OmegaConf.create({"value": override.value()}).value


@given(TEXTS)
@example("null")
@example("1e3")
@example("it's ${x} \\")
def test_argument_is_read_back_by_a_shell_and_hydra(text: str):
    assume(text != "???")  # OmegaConf's mark of a missing value
    assume("***" not in argument("resume", text))  # looks like a password
    assert as_read(argument("resume", text)) == text


@pytest.fixture(autouse=True)
def _script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py"])


def test_argument_without_special_characters_has_no_quotes():
    assert argument("resume", "outputs/2026-01-01_run.1") == "resume=outputs/2026-01-01_run.1"
    assert argument("tracking.uri", "sqlite:////x/m.db") == "tracking.uri=sqlite:////x/m.db"
    assert resume_command("/x/r", ["a", "b"]) == "python run.py resume=/x/r 'trust=[a,b]'"


NAMES = ["a,b", "a=b", "a#b", "é", "it's", "a b", "$HOME", "(a)", "{a}", "[a]", "a:b", "50%", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_printed_commands_keep_the_folder_as_one_word(name: str):
    folder = f"/x/{name}/run"
    assert as_read(resume_command(folder).removeprefix("python run.py ")) == folder
    assert shlex.split(sync_command(Path(folder)))[-1] == folder
    assert shlex.split(ui_command(f"sqlite:///{folder}"))[-1] == f"sqlite:///{folder}"


def test_resume_command_can_be_pasted_into_a_shell(tmp_path: Path):
    """The run is refused, by the name of its folder: it has no configuration."""
    folder = tmp_path / f"{' '.join(NAMES)} ${{x}}"
    folder.mkdir()
    command = resume_command(folder).replace("python run.py", '"$PYTHON" "$RUN"')
    names = {"PYTHON": sys.executable, "RUN": str(ROOT / "run.py")}
    process = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=tmp_path,
        env=os.environ | names,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 2
    assert f"{folder} has no config.yaml" in process.stderr
