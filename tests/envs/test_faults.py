"""An environment that fails is made anew and the others go on; after too often the run ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import assert_names, refused

from llmdreamer.config import EnvConfig
from llmdreamer.envs import EnvError, VectorEnv, make_vector
from llmdreamer.utils.errors import ConfigError

N = 2
STILL = np.tile(np.eye(4, dtype=np.float32)[0], (N, 1))
CAUSES = {
    "raise": ["OSError: a fuse is blown"],
    "nan": ["'state'", "NaN"],
    "kill": ["signal 9"],
    "hang": ["5.0 s", "killed"],
}


def room(
    processes: bool = False, restarts: int = 10, timeout: float | None = None, **kwargs: Any
) -> VectorEnv:
    cfg = EnvConfig(
        id="lightroom:LightRoom-v0",
        num_envs=N,
        action_repeat=1,
        processes=processes,
        max_restarts=restarts,
        timeout=timeout,
        image_size=16,
        kwargs={"show": ["state", "mission"], **kwargs},
    )
    return make_vector(cfg, N, seed=0)


@pytest.mark.parametrize(
    ("fault", "processes"),
    [
        ("raise", False),
        ("nan", False),
        ("raise", True),
        ("nan", True),
        ("kill", True),
        ("hang", True),
    ],
)
def test_a_failed_environment_begins_a_new_episode_and_the_other_goes_on(
    fault: str, processes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    timeout = 5.0 if fault == "hang" else None
    envs = room(processes, timeout=timeout, fault=fault, once=str(tmp_path / "broken"))
    try:
        envs.reset()
        before = [envs.step(STILL), envs.step(STILL)]
        assert not any(rows.is_first.any() for rows in before)
        with caplog.at_level(logging.WARNING):
            rows = envs.step(STILL)
        lost = int(rows.is_first.argmax())  # in processes, either may come to the file first
        assert rows.is_first.sum() == 1 and rows.reward[lost] == 0
        assert not (rows.terminated | rows.truncated).any()
        (record,) = caplog.records
        message = record.getMessage()
        assert_names(message, f"environment {lost}", "step 3", "1 of 10", *CAUSES[fault])
        for _ in range(5):  # the other's eighth step ends its episode
            rows = envs.step(STILL)
        assert rows.terminated.tolist() == [i != lost for i in range(N)]
    finally:
        envs.close()


def test_a_process_killed_from_outside_is_replaced():
    envs = room(processes=True)
    try:
        envs.reset()
        os.kill(envs._seats[1].process.pid, signal.SIGKILL)
        assert envs.step(STILL).is_first.tolist() == [False, True]
        assert envs.step(STILL).is_first.tolist() == [False, False]
        os.kill(envs._seats[0].process.pid, signal.SIGKILL)
        assert envs.reset(np.array([True, False])).is_first.tolist() == [True, False]
    finally:
        envs.close()


@pytest.mark.parametrize("processes", [False, True])
def test_beyond_the_bound_the_run_ends_with_one_line(processes: bool):
    envs = room(processes, restarts=1, fault="raise", once="/nowhere/at/all")  # touch() fails, too
    try:
        envs.reset()
        with refused(EnvError, "environment ", "failure 2", "env.max_restarts=1") as error:
            for _ in range(20):
                envs.step(STILL)
    finally:
        envs.close()
    assert error.value.exit_code == 1


def test_the_same_rows_come_from_processes():
    one, other = room(), room(processes=True)
    try:
        rng = np.random.default_rng(0)
        rows, others = one.reset(), other.reset()
        for _ in range(30):
            for key, shown in rows.observations.items():
                np.testing.assert_array_equal(shown, others.observations[key])
            np.testing.assert_array_equal(rows.reward, others.reward)
            over = rows.terminated | rows.truncated
            action = one.random_action(rng)
            rows, others = (
                envs.reset(over) if over.any() else envs.step(action) for envs in (one, other)
            )
    finally:
        one.close()
        other.close()
    assert other.spec == one.spec


def test_a_new_episode_after_a_failure_is_not_the_failed_one_again(tmp_path: Path):
    envs = room(fault="raise", once=str(tmp_path / "broken"))
    first = envs._pending_seeds[0]
    envs.reset()
    seeds: list[int | None] = []
    send = type(envs._seats[0]).send
    envs._seat = lambda make, plain=envs._seat: _spy(plain(make), seeds, send)  # type: ignore
    for _ in range(3):
        envs.step(STILL)
    assert len(seeds) == 1 and seeds[0] not in (None, first)


def _spy(seat: Any, seeds: list[int | None], send: Any) -> Any:
    def spied(method: str, *args: Any) -> None:
        if method == "reset":
            seeds.append(args[0])
        send(seat, method, *args)

    seat.send = spied
    return seat


def test_a_snapshot_crosses_processes_and_a_dead_one_has_none():
    def poles(processes: bool) -> VectorEnv:
        cfg = EnvConfig(
            id="CartPole-v1", num_envs=1, action_repeat=1, processes=processes, max_restarts=1
        )
        return make_vector(cfg, 1, seed=0)

    push = np.array([[0.0, 1.0]], np.float32)
    here, there = poles(False), poles(True)
    try:
        there.reset()
        there.step(push)
        state = there.snapshot()
        assert state is not None
        here.restore(state)
        for one, other in zip(
            here.step(push).observations.values(), [there.step(push)], strict=True
        ):
            np.testing.assert_array_equal(one, other.observations["state"])
        os.kill(there._seats[0].process.pid, signal.SIGKILL)
        assert there.snapshot() is None
        assert there.step(push).is_first[0]
    finally:
        there.close()


def test_an_environments_process_has_no_use_for_torch():
    code = "import sys, llmdreamer.envs.simulator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_environment_that_cannot_be_made_is_one_line_in_a_process_too():
    with refused(ConfigError, "env.kwargs=", "colour"):
        room(processes=True, colour="red")


def test_closing_ends_the_processes():
    envs = room(processes=True)
    processes = [seat.process for seat in envs._seats]
    pids = [process.pid for process in processes]
    envs.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
