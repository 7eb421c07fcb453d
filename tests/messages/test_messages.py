"""Every sentence that a user's mistake prints, compared with tests/messages/messages.txt.

After a change of wording, run `python -m pytest -n0 tests/messages --update-messages` and read the
difference that git shows. Other tests check what a message names, not its words.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import command_in
from mistakes import COMMANDS, PROGRAMS, of_backbones, of_environments, of_files, of_values

from llmdreamer.cli.command import main
from llmdreamer.config import (
    Config,
    to_yaml,
)
from llmdreamer.sweep.hydra_callback import ParentRunCallback

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
EXPECTED = Path(__file__).with_name("messages.txt")
UPDATE = "python -m pytest -n0 tests/messages --update-messages"
FEWEST = 100


def message_of(case: Callable[[], Any]) -> str:
    """Return the error that a case raises, by its class and text."""
    try:
        case()
    except Exception as error:  # noqa: BLE001 (the snapshot shows which it is)
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.fixture
def folder(tmp_path: Path, compose: Callable[..., Config]) -> Path:
    """A folder with two runs that have no checkpoint yet, and a link out of `outputs`."""
    for run in (tmp_path / "run", tmp_path / "outputs" / "run"):
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(to_yaml(compose()))
    (tmp_path / "outputs" / "link").symlink_to(tmp_path / "run")
    return tmp_path


def collect(
    folder: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """Return every message, by what causes it."""
    messages = {}
    stand_in = ModuleType("llmdreamer.training.loop")
    stand_in.train = lambda *_: pytest.fail("this command trains")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llmdreamer.training.loop", stand_in)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(ParentRunCallback, "on_multirun_start", lambda *_, **__: None)
    monkeypatch.setattr("llmdreamer.sweep.plan.find_spec", lambda name: name)
    with command_in(folder, monkeypatch, capsys) as typed:
        for words in COMMANDS:
            code, out, err = typed(*shlex.split(words, posix=False))
            messages[f"run.py {words}"] = f"exit {code}: {(out + err).rstrip()}"
        for title, case in [*of_values(cfg), *of_environments(), *of_files(), *of_backbones(cfg)]:
            messages[title] = message_of(case)
        capsys.readouterr()
        for words in PROGRAMS:
            try:
                code = main(words.split())
            except SystemExit as error:  # argparse
                code = int(str(error.code))
            said = "".join(capsys.readouterr()).rstrip()
            messages[f"python -m llmdreamer {words}"] = f"exit {code}: {said}"
    return messages


def page(messages: dict[str, str], folder: Path) -> str:
    """Return the messages as the text of a file, without what differs between machines."""
    text = "\n\n".join(f"[{title}]\n{message}" for title, message in messages.items()) + "\n"
    return text.replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT")


def test_messages_match_the_expected_file(
    folder: Path,
    compose: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    update_messages: bool,
):
    messages = collect(folder, compose(), monkeypatch, capsys)
    assert len(messages) >= FEWEST
    assert [title for title, said in messages.items() if said in ("no error", "exit 0: ")] == []
    found = page(messages, folder)
    if update_messages:
        EXPECTED.write_text(found, encoding="utf-8")
    expected = EXPECTED.read_text(encoding="utf-8")
    difference = "\n".join(
        difflib.unified_diff(
            expected.splitlines(),
            found.splitlines(),
            "messages.txt",
            "the program",
            lineterm="",
            n=1,
        )
    )
    if difference:
        pytest.fail(f"{difference}\n\nIf the new wording is meant: {UPDATE}", pytrace=False)
