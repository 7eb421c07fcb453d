import json
import math
from pathlib import Path

import pytest
from refusals import refused

from llmdreamer.tracking.spool import Spool, read


def test_what_is_appended_is_read_back(tmp_path: Path):
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"loss": 0.1, "return": 7.0}, 10, at=1.5)
    spool.append({"loss": 0.05}, 20, at=2.5)
    rows = [(row.env_step, row.time, row.metrics) for row in read(spool.path)]
    assert rows == [(10, 1.5, {"loss": 0.1, "return": 7.0}), (20, 2.5, {"loss": 0.05})]


def test_nan_and_infinity_survive_in_lines_that_are_json(tmp_path: Path):
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    json.loads(spool.path.read_text(), parse_constant=refuse)
    (row,) = read(spool.path)
    assert math.isnan(row.metrics["a"])
    assert (row.metrics["b"], row.metrics["c"]) == (math.inf, -math.inf)


def test_a_torn_last_line_is_left_out_and_cut_on_opening(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    spool = Spool(path)
    spool.append({"a": 1.0}, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"env_step": 2, "ti')
    assert [row.env_step for row in read(path)] == [1]
    spool = Spool(path)
    assert path.read_bytes() == whole
    spool.append({"a": 3.0}, 3)
    assert [row.env_step for row in read(path)] == [1, 3]


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    Spool(path).append({"a": 1.0}, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    Spool(path)
    assert path.read_bytes() == whole


def test_truncating_to_an_offset_forgets_what_came_after_it(tmp_path: Path):
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": 1.0}, 1)
    cursor = spool.offset()
    spool.append({"a": 2.0}, 2)
    spool.truncate(cursor)
    assert spool.offset() == cursor
    spool.append({"a": 2.5}, 2)
    assert [row.metrics["a"] for row in read(spool.path)] == [1.0, 2.5]


@pytest.mark.parametrize("offset", [3, 10_000, -1])
def test_an_offset_that_is_no_end_of_a_row_is_refused(tmp_path: Path, offset: int):
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": 1.0}, 1)
    with pytest.raises(ValueError):
        spool.truncate(offset)
    assert len(list(read(spool.path))) == 1


def test_reading_goes_on_where_a_row_ended(tmp_path: Path):
    spool = Spool(tmp_path / "metrics.jsonl")
    for step in range(3):
        spool.append({"a": float(step)}, step)
    first, *rest = read(spool.path)
    assert list(read(spool.path, first.end)) == rest
    assert rest[-1].end == spool.offset()


def test_a_line_that_is_no_row_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    Spool(path).append({"a": 1.0}, 1)
    end = path.stat().st_size
    with open(path, "ab") as file:
        file.write(b"[1]\n")
    with refused(ValueError, f"byte {end}"):
        list(read(path))
