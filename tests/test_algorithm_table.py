"""docs/algorithm.md names files and functions that are there."""

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


def test_every_part_has_its_place_its_source_and_its_difference():
    assert len(ROWS) > 25
    assert all(len(row) == 4 and all(cell.strip(" |") for cell in row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_what_the_table_names_is_there(row):
    file = None
    for named in re.findall("`([^`]+)`", row[1]):
        symbol = named
        if "/" in named or ".py" in named:
            path, _, symbol = named.partition(":")
            file = ROOT / "llmdreamer" / path
            assert file.exists(), file
        assert file is not None
        files = [file] if file.is_file() else sorted(file.glob("*.py"))
        source = "\n".join(one.read_text() for one in files)
        for name in filter(None, symbol.split(".")):
            assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), (file, name)
