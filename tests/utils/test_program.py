"""The command that a message repeats, and the one that starts a sweep's runs."""

import sys

import pytest

from llmdreamer.utils.program import child_program, to_type, typed_words

STARTED_BY = {
    # sys.argv[0]: the start of a run, of a sweep, and of a sweep's child process
    "/repo/run.py": ("python run.py", "python run.py -m", ["/repo/run.py"]),
    "/venv/bin/llmdreamer": (
        "llmdreamer train",
        "llmdreamer sweep",
        ["/venv/bin/llmdreamer", "train"],
    ),
    "/lib/llmdreamer/__main__.py": (
        "llmdreamer train",
        "llmdreamer sweep",
        ["-m", "llmdreamer", "train"],
    ),
}


@pytest.mark.parametrize("program", STARTED_BY)
def test_program_is_repeated_as_the_user_started_it(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "seed=1"])
    run, sweep, child = STARTED_BY[program]
    assert (to_type(), to_type(multirun=True)) == (run, sweep)
    assert child_program() == [sys.executable, *child]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run.py", "-m", "seed=1,2"], "python run.py -m seed=1,2"),
        (["/venv/bin/llmdreamer", "-m", "seed=1,2"], "llmdreamer sweep seed=1,2"),
        (["/venv/bin/llmdreamer", "seed=1"], "llmdreamer train seed=1"),
    ],
)
def test_typed_words_can_be_typed_again(argv, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert " ".join(typed_words()) == words
