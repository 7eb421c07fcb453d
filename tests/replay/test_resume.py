"""The buffer after kills, full disks and resumes."""

from __future__ import annotations

import dataclasses
import errno
import io
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_steps import SPEC, bytes_of, fill, make_step, replay
from refusals import assert_names, refused

from llmdreamer.replay import SequenceReplay, stream
from llmdreamer.utils.errors import ConfigError


def through_a_checkpoint(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in [
            (a.observations["state"], b.observations["state"]),
            (a.action, b.action),
            (a.reward, b.reward),
            (a.is_first, b.is_first),
            (a.terminated, b.terminated),
        ]
    )


@pytest.mark.parametrize("checkpoint", [13, 47, 90])
def test_resumed_buffer_equals_uninterrupted_buffer(tmp_path: Path, checkpoint: int):
    """Rows, samples and files, also when steps were dropped after the checkpoint."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = {"n": 2, "capacity": 80, "length": 4, "slack": 30, "terminated_share": 0.5}
    # Files of 5 steps.
    buffer, cut = replay(whole, **settings), replay(broken, **settings)
    for each in (buffer, cut):
        fill(each, 0, checkpoint, n=2)
        each.sample(5)
        each.flush()
    state = through_a_checkpoint(cut.state_dict())
    fill(cut, checkpoint, checkpoint + 23, n=2)  # lost in the kill
    cut.sample(7)

    resumed = replay(broken, **settings)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for each in (buffer, resumed):
        fill(each, checkpoint, checkpoint + 60, n=2)
    assert same(buffer.sample(16), resumed.sample(16))
    assert buffer.state_dict() == resumed.state_dict()
    assert bytes_of(whole) == bytes_of(broken)


def test_steps_after_the_cursor_and_torn_steps_are_removed(tmp_path: Path):
    buffer = replay(tmp_path, capacity=80)  # files of 10 steps
    fill(buffer, 0, 17)
    state, before = buffer.state_dict(), bytes_of(tmp_path)
    fill(buffer, 17, 35)
    newest = max(tmp_path.rglob("*.steps"))
    with newest.open("ab") as file:
        file.write(b"half a step")
    resumed = replay(tmp_path, capacity=80)
    resumed.load_state_dict(state)
    assert bytes_of(tmp_path) == before


def test_torn_step_is_overwritten_without_checkpoint(tmp_path: Path):
    buffer = replay(tmp_path)
    fill(buffer, 0, 7)
    (path,) = tmp_path.rglob("*.steps")
    os.truncate(path, 6 * 23 + 11)  # steps of 23 bytes: the seventh is torn
    resumed = replay(tmp_path)
    assert len(resumed) == 6
    fill(resumed, 6, 8)
    assert path.stat().st_size == 8 * 23
    resumed = replay(tmp_path, online=False)
    rewards = resumed.sample(20).reward[:, -1].tolist()
    assert set(rewards) == {3.0, 4.0, 5.0, 6.0, 7.0}


def test_killed_process_keeps_every_appended_step(tmp_path: Path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from numbered_steps import fill, replay
fill(replay(Path({str(tmp_path)!r}), capacity=80), 0, 33)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(replay(tmp_path, capacity=80)) == 33


def test_full_disk_raises_and_loses_no_step(tmp_path: Path):
    """The limit on a file's size fails a write for real, half a step on."""
    second = np.array([False, True])
    buffer, calm = replay(tmp_path / "full", n=2), replay(tmp_path / "calm", n=2)
    for each in (buffer, calm):
        fill(each, 0, 10, n=2)
        each.append(*make_step([0, 10]), mask=second)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 * 23 + 5, limits[1]))
    try:
        buffer.append(*make_step([10, 11]))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            buffer.append(*make_step([11, 12]))  # room for it in the first stream only
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert buffer.state_dict()["written"] == [11, 12]
    calm.append(*make_step([10, 11]))
    for each in (buffer, calm):
        for number in range(11, 30):
            each.append(*make_step([number, number + 1]))
    assert bytes_of(tmp_path / "full") == bytes_of(tmp_path / "calm")


def test_files_beyond_capacity_and_slack_are_deleted(tmp_path: Path):
    buffer = replay(tmp_path, capacity=80, slack=20)  # files of 10 steps
    fill(buffer, 0, 205)
    names = sorted(int(path.stem) for path in tmp_path.rglob("*.steps"))
    assert names == list(range(100, 210, 10))  # 205 - 80 - 20 = 105 is in the file of 100


def test_truncated_file_is_synced_while_it_grows(tmp_path, monkeypatch):
    buffer = replay(tmp_path, capacity=800)  # files of 100 steps
    fill(buffer, 0, 30)
    state = buffer.state_dict()
    resumed = replay(tmp_path, capacity=800)
    resumed.load_state_dict(state | {"written": [20]})
    synced: list[str] = []
    monkeypatch.setattr(stream, "fsync", lambda path: synced.append(path.name))
    resumed.flush()  # a checkpoint between the cut and the next step
    for times, begin in ((2, 20), (3, 30)):
        fill(resumed, begin, begin + 10)
        resumed.flush()
        assert synced.count("000000000000.steps") == times


def test_checkpoint_older_than_slack_is_refused_without_truncation(tmp_path: Path):
    buffer = replay(tmp_path, capacity=80, slack=0)
    fill(buffer, 0, 90)
    state = buffer.state_dict()
    fill(buffer, 90, 150)
    before = bytes_of(tmp_path)
    resumed = replay(tmp_path, capacity=80, slack=0)
    with refused(ConfigError, tmp_path, "70..150", "10..90"):
        resumed.load_state_dict(state)
    assert bytes_of(tmp_path) == before


def test_stream_shorter_than_the_cursor_is_refused(tmp_path: Path):
    buffer = replay(tmp_path)
    fill(buffer, 0, 20)
    state = buffer.state_dict()
    (path,) = tmp_path.rglob("*.steps")
    os.truncate(path, 19 * 23)
    with refused(ConfigError, tmp_path, "0..19", "0..20"):
        replay(tmp_path).load_state_dict(state)
    with refused(ConfigError, "1", "env.num_envs=2"):
        replay(tmp_path / "other", n=2).load_state_dict(state)


def test_files_beyond_a_gap_are_ignored(tmp_path: Path):
    buffer = replay(tmp_path, capacity=80)  # files of 10 steps
    fill(buffer, 0, 35)
    (tmp_path / "replay/stream-0000/000000000010.steps").unlink()
    resumed = replay(tmp_path, capacity=80)
    assert len(resumed) == 10
    fill(resumed, 10, 21)
    assert len(replay(tmp_path, capacity=80)) == 21


def test_clear_empties_the_buffer(tmp_path: Path):
    buffer = replay(tmp_path, capacity=80, slack=0)
    fill(buffer, 0, 205)
    buffer.clear()
    assert len(buffer) == 0 and not buffer.ready and not bytes_of(tmp_path)
    fill(buffer, 0, 5)
    assert buffer.sample(1).reward.tolist() == [[0.0, 0.0, 1.0, 2.0, 3.0]]


def test_folder_with_another_layout_is_refused(tmp_path: Path):
    replay(tmp_path)
    other = dataclasses.replace(SPEC, observations={"state": (3,)})
    with refused(ConfigError, tmp_path, "{'state': [2]}", "{'state': [3]}"):
        SequenceReplay(tmp_path / "replay", other, 1, 1000, 4, seed=0)
    with refused(ConfigError, tmp_path, "num_envs=1", "num_envs=2"):
        replay(tmp_path, n=2)


def test_folder_without_replay_is_refused(tmp_path: Path):
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "thesis.tex").touch()
    with refused(ConfigError, tmp_path / "replay", "empty", "replay folder"):
        replay(tmp_path)


def test_capacity_below_one_sequence_is_refused(tmp_path: Path):
    replay(tmp_path / "fits", n=2, capacity=10, length=4)
    with refused(ConfigError, "replay.capacity=9", "2 environments", "5"):
        replay(tmp_path / "less", n=2, capacity=9, length=4)


def test_small_disk_warns_and_tiny_disk_is_refused(tmp_path: Path, caplog):
    free_steps = shutil.disk_usage(tmp_path).free // 23
    with caplog.at_level(logging.WARNING):
        replay(tmp_path / "half", capacity=2 * free_steps)
    (record,) = caplog.records
    assert_names(record.getMessage(), "replay.capacity", tmp_path / "half", "GiB", "disk")
    with refused(ConfigError, "replay.capacity", tmp_path / "none", "GiB", "output_root"):
        replay(tmp_path / "none", capacity=200 * free_steps)
