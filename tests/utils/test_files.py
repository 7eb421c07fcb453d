"""Test that a home folder that does not exist is refused wherever a path is typed."""

from pathlib import Path

import pytest
from refusals import refused

from llmdreamer.config import run_folder
from llmdreamer.sweep.studies.storage import StudyStorage
from llmdreamer.tracking.store import resolve_uri
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import expand_user

NOBODY = "~no-such-user/x"


def test_home_of_the_user_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_user("~/x") == Path("/home/me/x")
    assert expand_user("a/~/x") == Path("a/~/x")


@pytest.mark.parametrize(
    "read",
    [
        expand_user,
        lambda path: run_folder(path, "run"),
        lambda path: resolve_uri(path, Path.cwd()),
        lambda path: StudyStorage(f"sqlite:///{path}.db", Path.cwd(), 15),
    ],
)
def test_home_of_an_unknown_user_is_refused_in_one_line(read):
    with refused(ConfigError, NOBODY):
        read(NOBODY)
