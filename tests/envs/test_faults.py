"""Test that a failed environment is restarted, and that too many failures raise an error."""

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
NOOP = np.tile(np.eye(4, dtype=np.float32)[0], (N, 1))
CAUSES = {
    "raise": ["OSError: a fuse is blown"],
    "stop": ["StopIteration"],
    "exit": ["SystemExit: 0"],
    "nan": ["'state'", "NaN"],
    "kill": ["signal 9"],
    "hang": ["5.0 s", "killed"],
}


def make_room(
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
        ("stop", False),
        ("exit", False),
        ("nan", False),
        ("raise", True),
        ("stop", True),
        ("exit", True),
        ("nan", True),
        ("kill", True),
        ("hang", True),
    ],
)
def test_failed_environment_restarts_and_the_other_continues(
    fault: str, processes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    timeout = 5.0 if fault == "hang" else None
    envs = make_room(processes, timeout=timeout, fault=fault, once=str(tmp_path / "broken"))
    try:
        envs.reset()
        before = [envs.step(NOOP), envs.step(NOOP)]
        assert not any(step.is_first.any() for step in before)
        with caplog.at_level(logging.WARNING):
            step = envs.step(NOOP)
        failed = int(step.is_first.argmax())  # in processes, either may fail first
        assert step.is_first.sum() == 1 and step.reward[failed] == 0
        assert not (step.terminated | step.truncated).any()
        (record,) = caplog.records
        message = record.getMessage()
        assert_names(message, f"environment {failed}", "step 3", "1 of 10", *CAUSES[fault])
        for _ in range(5):  # the other one's episode ends after eight steps
            step = envs.step(NOOP)
        assert step.terminated.tolist() == [i != failed for i in range(N)]
    finally:
        envs.close()


def test_killed_worker_process_is_replaced():
    envs = make_room(processes=True)
    try:
        envs.reset()
        os.kill(envs._workers[1].process.pid, signal.SIGKILL)
        assert envs.step(NOOP).is_first.tolist() == [False, True]
        assert envs.step(NOOP).is_first.tolist() == [False, False]
        os.kill(envs._workers[0].process.pid, signal.SIGKILL)
        assert envs.reset(np.array([True, False])).is_first.tolist() == [True, False]
    finally:
        envs.close()


@pytest.mark.parametrize("processes", [False, True])
def test_failures_beyond_max_restarts_raise_env_error(processes: bool):
    envs = make_room(
        processes, restarts=1, fault="raise", once="/nowhere/at/all"
    )  # touch() fails too, so every step fails
    try:
        envs.reset()
        with refused(EnvError, "environment ", "failure 2", "env.max_restarts=1") as error:
            for _ in range(20):
                envs.step(NOOP)
    finally:
        envs.close()
    assert error.value.exit_code == 1


def test_processes_return_the_same_time_steps():
    local, remote = make_room(), make_room(processes=True)
    try:
        rng = np.random.default_rng(0)
        step, remote_step = local.reset(), remote.reset()
        for _ in range(30):
            for key, array in step.observations.items():
                np.testing.assert_array_equal(array, remote_step.observations[key])
            np.testing.assert_array_equal(step.reward, remote_step.reward)
            over = step.terminated | step.truncated
            action = local.random_action(rng)
            step, remote_step = (
                envs.reset(over) if over.any() else envs.step(action) for envs in (local, remote)
            )
    finally:
        local.close()
        remote.close()
    assert remote.spec == local.spec


def test_restarted_environment_has_a_new_seed(tmp_path: Path):
    envs = make_room(fault="raise", once=str(tmp_path / "broken"))
    first = envs._pending_seeds[0]
    envs.reset()
    seeds: list[int | None] = []
    send = type(envs._workers[0]).send
    envs._make_worker = lambda make, original=envs._make_worker: _record_seeds(
        original(make), seeds, send
    )  # type: ignore
    for _ in range(3):
        envs.step(NOOP)
    assert len(seeds) == 1 and seeds[0] not in (None, first)


def _record_seeds(worker: Any, seeds: list[int | None], send: Any) -> Any:
    def recording_send(method: str, *args: Any) -> None:
        if method == "reset":
            seeds.append(args[0])
        send(worker, method, *args)

    worker.send = recording_send
    return worker


def test_snapshot_crosses_processes_and_is_none_for_a_dead_one():
    def make_pole(processes: bool) -> VectorEnv:
        cfg = EnvConfig(
            id="CartPole-v1", num_envs=1, action_repeat=1, processes=processes, max_restarts=1
        )
        return make_vector(cfg, 1, seed=0)

    push = np.array([[0.0, 1.0]], np.float32)
    local, remote = make_pole(False), make_pole(True)
    try:
        remote.reset()
        remote.step(push)
        state = remote.snapshot()
        assert state is not None
        local.restore(state)
        expected, result = local.step(push), remote.step(push)
        np.testing.assert_array_equal(expected.observations["state"], result.observations["state"])
        os.kill(remote._workers[0].process.pid, signal.SIGKILL)
        assert remote.snapshot() is None
        assert remote.step(push).is_first[0]
    finally:
        remote.close()


def test_environment_process_does_not_import_torch():
    code = "import sys, llmdreamer.envs.simulator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_environment_error_in_worker_process_raises_config_error():
    with refused(ConfigError, "env.kwargs=", "colour"):
        make_room(processes=True, colour="red")


def test_close_ends_worker_processes():
    envs = make_room(processes=True)
    processes = [worker.process for worker in envs._workers]
    pids = [process.pid for process in processes]
    envs.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
