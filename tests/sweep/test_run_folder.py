"""Reading the folder of a run while the run writes, is killed and is resumed."""

from llmdreamer.sweep.run_folder import CurveReader, is_finished, newest_checkpoint
from llmdreamer.tracking.record import RunFiles, RunRecord, save
from llmdreamer.tracking.spool import Spool


def test_curve_reader_continues_where_it_stopped(tmp_path):
    reader, spool = CurveReader(tmp_path), Spool(tmp_path / "metrics.jsonl")
    assert reader.read() == {}
    spool.append({"a": 1.0, "b": 2.0}, 5)
    assert reader.read() == {"a": [(5, 1.0)], "b": [(5, 2.0)]}
    spool.append({"a": 3.0}, 10)
    assert reader.read() == {"a": [(5, 1.0), (10, 3.0)], "b": [(5, 2.0)]}
    assert reader.env_step == 10


def test_curve_reader_drops_records_that_a_resumed_run_truncated(tmp_path):
    reader, spool = CurveReader(tmp_path), Spool(tmp_path / "metrics.jsonl")
    for step in (5, 10, 15):
        spool.append({"a": float(step)}, step)
    reader.read()
    spool.truncate(0)
    spool.append({"a": 7.0}, 5)
    assert reader.read() == {"a": [(5, 7.0)]}


def test_curve_reader_starts_over_when_its_offset_is_inside_a_record(tmp_path):
    reader, spool = CurveReader(tmp_path), Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": 1.0}, 5)
    reader.read()
    spool.truncate(0)
    spool.append({"a": 1.0, "with a longer name": 2.0}, 5)  # ends at another offset
    spool.append({"a": 3.0}, 10)
    assert reader.read()["a"] == [(5, 1.0), (10, 3.0)]


def test_run_is_finished_only_if_its_record_says_so(tmp_path):
    assert not is_finished(tmp_path)
    for status in (None, "FAILED", "KILLED"):
        save(RunRecord("", "", "", {}, {}, 0.0, status=status), RunFiles(tmp_path).run_record)
        assert not is_finished(tmp_path)
    save(RunRecord("", "", "", {}, {}, 0.0, status="FINISHED"), RunFiles(tmp_path).run_record)
    assert is_finished(tmp_path)


def test_newest_checkpoint_ignores_temporary_files(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints" / "step-000000000007.tmp").touch()
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 40):
        (tmp_path / "checkpoints" / f"step-{step:012d}-0123456789abcdef.pt").touch()
    assert newest_checkpoint(tmp_path) == "step-000000000040-0123456789abcdef.pt"
