"""Checks that the files and functions that docs/algorithm.md names exist."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
ROWS = [
    line.split(" | ")
    for line in (ROOT / "docs" / "algorithm.md").read_text().splitlines()
    if re.match(r"\| .* \| `[a-z_/]+(\.py)?[:`/]", line)
]


def test_algorithm_table_has_no_empty_cell():
    assert len(ROWS) > 25
    assert all(len(row) == 4 and all(cell.strip(" |") for cell in row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_algorithm_table_names_existing_code(row):
    file = None
    for named in re.findall("`([^`]+)`", row[1]):
        symbol = named
        if "/" in named or ".py" in named:
            path, _, symbol = named.partition(":")
            file = ROOT / "llmdreamer" / path
            assert file.exists(), file
        assert file is not None
        files = [file] if file.is_file() else sorted(file.glob("*.py"))
        source = "\n".join(path.read_text() for path in files)
        for name in filter(None, symbol.split(".")):
            assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), (file, name)
