"""CI runs the test command of the README."""

import os
import subprocess
from pathlib import Path

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
TEST_LINE = (
    "python -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
)


def test_ci_runs_the_test_line_of_the_readme(tmp_path):
    (tmp_path / ".ci").mkdir()
    # The real script, with a README whose test line only prints.
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text("# a\n\ntext\n    echo ran python -m pytest\n")
    done = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "\nran python -m pytest\n" in done.stdout


def test_readme_and_contributing_give_the_same_test_line():
    for name in ("README.md", "CONTRIBUTING.md"):
        lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
        assert lines.count(TEST_LINE) == 1, name
