"""Training goes on while a checkpoint is written: of the state as it was, and one at a time."""

import logging
import os
import threading
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest
import torch

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.training.loop import Run
from llmdreamer.utils.errors import Diverged

CPU = torch.device("cpu")
LIMIT = 60  # seconds for anything to happen


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=9)


def state(step):
    return {"step": step, "weights": torch.full((3,), float(step)), "rows": [step, [1, None]]}


class Gate:
    """Lets a write begin, and go on once it is opened."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, *_):
        self.reached.set()
        assert self.opened.wait(LIMIT)


def test_writer_writes_the_state_at_the_time_of_the_call(checkpoints):
    gate = Gate()
    moving = state(1)
    shared = moving["weights"].view(3)
    with CheckpointWriter(checkpoints) as saver:
        saver.save(moving, 1, gate)  # is back though nothing is written yet
        assert gate.reached.wait(LIMIT) and not list(checkpoints.folder.glob("*.pt"))
        shared.fill_(9.0)
        moving["rows"].append(9)
        moving["rows"][1].append(9)
        gate.opened.set()
    back = checkpoints.newest(CPU)
    assert (back["step"], back["rows"], back["weights"].tolist()) == (1, [1, [1, None]], [1.0] * 3)


def test_writer_writes_one_at_a_time_in_order(checkpoints):
    writing, most = [], []

    def note(given):
        writing.append(given["step"])
        most.append(len(writing))

    with CheckpointWriter(checkpoints, note) as saver:
        for step in range(1, 6):
            saver.save(state(step), step, writing.pop)
    assert most == [1] * 5
    assert sorted(path.name[:17] for path in checkpoints.folder.glob("*.pt")) == [
        f"step-{step:012d}" for step in range(1, 6)
    ]


def test_writer_exit_waits_for_the_last_checkpoint(checkpoints):
    gate = Gate()
    with pytest.raises(SystemExit), CheckpointWriter(checkpoints) as saver:
        saver.save(state(1), 1, gate)
        threading.Timer(0.05, gate.opened.set).start()
        raise SystemExit(143)
    assert checkpoints.newest(CPU)["step"] == 1


@pytest.mark.parametrize("where", ["fsync", "before"])
def test_full_disk_logs_one_line_and_training_continues(checkpoints, monkeypatch, caplog, where):
    def full(*_):
        raise OSError(28, "No space left on device")

    with CheckpointWriter(checkpoints) as saver:
        saver.save(state(1), 1)
        saver.wait()
        with monkeypatch.context() as patch:
            if where == "fsync":
                patch.setattr(os, "fsync", full)
            saver.save(state(2), 2, full if where == "before" else None)
            saver.wait()
        assert saver.take_metrics() == {}
        assert checkpoints.newest(CPU)["step"] == 1
        saver.save(state(3), 3)
    assert caplog.text.count("no checkpoint at policy step 2: [Errno 28]") == 1
    assert sorted(path.name[15:17] for path in checkpoints.folder.iterdir()) == ["01", "03"]


def refuse(given):
    if given["step"] == 2:
        raise Diverged("weights is not finite")


def test_refused_state_is_not_written_and_raises_on_next_check(checkpoints):
    with CheckpointWriter(checkpoints, refuse) as saver:
        saver.save(state(1), 1)
        saver.save(state(2), 2)
        with pytest.raises(Diverged):
            while saver._writing is not None:
                saver.raise_pending()
        saver.raise_pending()  # raised once
    assert checkpoints.newest(CPU)["step"] == 1


def test_raise_pending_does_not_wait_for_the_writing_thread(checkpoints):
    gate = Gate()
    with CheckpointWriter(checkpoints) as saver:
        saver.save(state(1), 1, gate)
        assert gate.reached.wait(LIMIT)
        saver.raise_pending()  # is back though nothing is written yet
        assert not list(checkpoints.folder.glob("*.pt"))
        gate.opened.set()


def test_training_step_checks_the_pending_checkpoint(checkpoints):
    nothing = SimpleNamespace(update_due=bool, train_updates=list, compile_seconds=None)
    with CheckpointWriter(checkpoints, refuse) as saver:
        saver.save(state(2), 2)
        saver._writing.exception(LIMIT)  # written, and refused
        run = SimpleNamespace(config=None, trainer=nothing, writer=saver, _collect=lambda _: None)
        with pytest.raises(Diverged):
            Run._step(run, None, None)


def test_refused_last_state_raises_on_exit(checkpoints):
    with pytest.raises(Diverged), CheckpointWriter(checkpoints, refuse) as saver:
        saver.save(state(2), 2)


def test_state_too_large_to_copy_is_written_synchronously(checkpoints, monkeypatch, caplog):
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(4000))
    with caplog.at_level(logging.INFO), CheckpointWriter(checkpoints) as saver:
        for step in (1, 2):
            saver.save({"weights": torch.ones(251)}, step)  # 1004 bytes: over a quarter
            assert len(list(checkpoints.folder.glob("*.pt"))) == step
            assert saver.take_metrics().keys() == {
                "time/checkpoint_seconds",
                "system/checkpoint_bytes",
            }
        assert caplog.text.count("free memory to copy checkpoints") == 1
        gate = Gate()
        saver.save({"weights": torch.ones(250)}, 3, gate)
        assert gate.reached.wait(LIMIT)
        gate.opened.set()
    assert len(list(checkpoints.folder.glob("*.pt"))) == 3


def test_tied_weights_are_copied_once_and_restored(checkpoints, monkeypatch):
    table = torch.arange(100_000.0)
    given = {"embed": table, "head": table, "moments": table.view(100, 1000).T}
    with CheckpointWriter(checkpoints) as saver:
        saver.save(given, 1)
        saver.wait()
        size = saver.take_metrics()["system/checkpoint_bytes"]
    assert 800_000 < size < 820_000  # the table once, and its transpose
    back = checkpoints.newest(CPU)
    assert all(torch.equal(back[name], given[name]) for name in given)
