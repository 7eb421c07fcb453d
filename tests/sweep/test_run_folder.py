"""Reading the curves of a run that is being written, killed and resumed."""

from llmdreamer.sweep.run_folder import CurveReader, is_finished, newest_checkpoint
from llmdreamer.tracking.record import RunFiles, Wanted, save
from llmdreamer.tracking.spool import Spool


def test_curves_are_read_on_from_where_the_last_reading_ended(tmp_path):
    tail, spool = CurveReader(tmp_path), Spool(tmp_path / "metrics.jsonl")
    assert tail.read() == {}
    spool.append({"a": 1.0, "b": 2.0}, 5)
    assert tail.read() == {"a": [(5, 1.0)], "b": [(5, 2.0)]}
    spool.append({"a": 3.0}, 10)
    assert tail.read() == {"a": [(5, 1.0), (10, 3.0)], "b": [(5, 2.0)]}
    assert tail.env_step == 10


def test_what_a_resumed_run_has_cut_is_forgotten(tmp_path):
    tail, spool = CurveReader(tmp_path), Spool(tmp_path / "metrics.jsonl")
    for step in (5, 10, 15):
        spool.append({"a": float(step)}, step)
    tail.read()
    spool.truncate(0)
    spool.append({"a": 7.0}, 5)
    assert tail.read() == {"a": [(5, 7.0)]}


def test_a_run_cut_back_and_longer_again_is_read_anew(tmp_path):
    tail, spool = CurveReader(tmp_path), Spool(tmp_path / "metrics.jsonl")
    spool.append({"a": 1.0}, 5)
    tail.read()
    spool.truncate(0)
    spool.append({"a": 1.0, "with a longer name": 2.0}, 5)  # its end is elsewhere
    spool.append({"a": 3.0}, 10)
    assert tail.read()["a"] == [(5, 1.0), (10, 3.0)]


def test_a_run_is_finished_when_it_has_said_so(tmp_path):
    assert not is_finished(tmp_path)
    for status in (None, "FAILED", "KILLED"):
        save(Wanted("", "", "", {}, {}, 0.0, status=status), RunFiles(tmp_path).wanted)
        assert not is_finished(tmp_path)
    save(Wanted("", "", "", {}, {}, 0.0, status="FINISHED"), RunFiles(tmp_path).wanted)
    assert is_finished(tmp_path)


def test_debris_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints" / "step-000000000007.tmp").touch()
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 40):
        (tmp_path / "checkpoints" / f"step-{step:012d}-0123456789abcdef.pt").touch()
    assert newest_checkpoint(tmp_path) == "step-000000000040-0123456789abcdef.pt"
