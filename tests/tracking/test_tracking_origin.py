"""The commit and version tags of a record, against a real checkout."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from llmdreamer.tracking import origin


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkout in which `module.py` stands for the package."""

    def run(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    (tmp_path / "module.py").write_text("x = 1\n")
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "module.py"))
    run("init", "-q")
    origin.commit.cache_clear()
    yield run
    origin.commit.cache_clear()


def test_commit_is_that_of_the_checkout_with_dirty_if_files_changed(git, tmp_path: Path):
    git("add", "."), git("commit", "-q", "-m", "first"), git("tag", "v1")
    head = git("rev-parse", "HEAD")
    assert origin.commit() == head
    origin.commit.cache_clear()
    (tmp_path / "module.py").write_text("x = 2\n")
    assert origin.commit() == f"{head}-dirty"


def test_commit_is_unknown_where_git_does_not_track_the_package(git, tmp_path: Path):
    """As in PROJECT/.venv/lib/site-packages, below a checkout that does not track the file."""
    (tmp_path / "theirs.py").write_text("")
    git("add", "theirs.py"), git("commit", "-q", "-m", "theirs")
    assert origin.commit() == "unknown"


def test_origin_tags_the_host_and_the_package_versions():
    tags = origin.origin()
    assert tags["host"] == platform.node() and tags["version.torch"] == version("torch")
    packages = {"llmdreamer", "torch", "transformers", "peft", "gymnasium", "mlflow", "optuna"}
    assert {key.removeprefix("version.") for key in tags if "version." in key} == {
        *packages,
        "python",
    }
    assert "unknown" not in {tags[f"version.{name}"] for name in packages - {"llmdreamer"}}
