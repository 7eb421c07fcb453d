import json
import math
from pathlib import Path

import pytest
from refusals import refused

from llmdreamer.tracking.spool import Spool, read_metrics


def test_spool_reads_back_what_was_appended(tmp_path: Path):
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"loss": 0.1, "return": 7.0}, 10, at=1.5)
    spool.append({"loss": 0.05}, 20, at=2.5)
    records = [
        (record.env_step, record.time, record.metrics) for record in read_metrics(spool.path)
    ]
    assert records == [(10, 1.5, {"loss": 0.1, "return": 7.0}), (20, 2.5, {"loss": 0.05})]


def test_spool_stores_nan_and_infinity_as_valid_json(tmp_path: Path):
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not valid JSON")

    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    json.loads(spool.path.read_text(), parse_constant=refuse)
    (record,) = read_metrics(spool.path)
    assert math.isnan(record.metrics["a"])
    assert (record.metrics["b"], record.metrics["c"]) == (math.inf, -math.inf)


def test_incomplete_last_line_is_skipped_and_removed_on_opening(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    spool = Spool(path)
    spool.append({"a": 1.0}, 1)
    complete = path.read_bytes()
    path.write_bytes(complete + b'{"env_step": 2, "ti')
    assert [record.env_step for record in read_metrics(path)] == [1]
    spool = Spool(path)
    assert path.read_bytes() == complete
    spool.append({"a": 3.0}, 3)
    assert [record.env_step for record in read_metrics(path)] == [1, 3]


def test_incomplete_line_longer_than_a_block_is_removed(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    Spool(path).append({"a": 1.0}, 1)
    complete = path.read_bytes()
    path.write_bytes(complete + b"x" * 200_000)
    Spool(path)
    assert path.read_bytes() == complete


def test_truncate_removes_the_records_after_the_offset(tmp_path: Path):
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": 1.0}, 1)
    cursor = spool.offset()
    spool.append({"a": 2.0}, 2)
    spool.truncate(cursor)
    assert spool.offset() == cursor
    spool.append({"a": 2.5}, 2)
    assert [record.metrics["a"] for record in read_metrics(spool.path)] == [1.0, 2.5]


@pytest.mark.parametrize("offset", [3, 10_000, -1])
def test_truncate_refuses_an_offset_that_ends_no_record(tmp_path: Path, offset: int):
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": 1.0}, 1)
    with pytest.raises(ValueError):
        spool.truncate(offset)
    assert len(list(read_metrics(spool.path))) == 1


def test_read_metrics_continues_from_the_end_of_a_record(tmp_path: Path):
    spool = Spool(tmp_path / "metrics.jsonl")
    for step in range(3):
        spool.append({"a": float(step)}, step)
    first, *rest = read_metrics(spool.path)
    assert list(read_metrics(spool.path, first.end)) == rest
    assert rest[-1].end == spool.offset()


def test_read_metrics_names_the_byte_of_an_invalid_record(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    Spool(path).append({"a": 1.0}, 1)
    end = path.stat().st_size
    with open(path, "ab") as file:
        file.write(b"[1]\n")
    with refused(ValueError, f"byte {end}"):
        list(read_metrics(path))
