"""Ray: its client process, the clusters that a sweep finds or starts, and a grid on each."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from sweep_helpers import Sweeper, wait_until

from llmdreamer.sweep.launchers import ray as ray_launcher
from llmdreamer.sweep.launchers.base import LauncherLost
from llmdreamer.sweep.launchers.ray import RayClient, RayLauncher
from llmdreamer.sweep.launchers.ray_worker import isolated_init_args
from llmdreamer.sweep.settings import RaySettings
from llmdreamer.utils.errors import ConfigError

TWO_SEEDS = ["seed=0,1", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=g"]


def test_address_that_does_not_answer_is_a_config_error():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConfigError, match=f"address=ray://127.0.0.1:{port}"):
        ray_launcher._check_address(f"ray://127.0.0.1:{port}")
    ray_launcher._check_address("auto")


# A stand-in for ray_worker.py: it reads the first request, then does what the test gives.
WORKER = """
import pickle, sys, time
request = pickle.load(sys.stdin.buffer)
print("a line of Ray's", file=sys.stderr, flush=True)
def answer(value):
    pickle.dump(value, sys.stdout.buffer); sys.stdout.flush()
"""


def start_client(script: str) -> RayClient:
    return RayClient([sys.executable, "-c", f"{WORKER}\n{script}"], "the first request")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("answer(None)", None),
        ("answer('no cluster, but ' + request)", "no cluster, but the first request"),
        ("import os; os.abort()", "a line of Ray's"),
    ],
)
def test_ray_client_reports_why_ray_did_not_start(script, error):
    client = start_client(script)
    assert client.wait_ready(60) == error
    client.close(60)


def test_ray_client_that_hangs_is_killed_after_the_timeout():
    client = start_client("time.sleep(1000)")
    assert "0.2 seconds" in client.wait_ready(0.2)
    client.close(0.2)
    assert client._process.returncode == -signal.SIGKILL


def test_ray_client_that_dies_loses_its_jobs_and_the_launcher():
    client = start_client("answer(None); answer(('a', 'it crashed')); sys.stdin.buffer.read(1)")
    assert client.wait_ready(60) is None
    wait_until(lambda: client.is_over("a"), timeout_seconds=30)
    assert not client.is_over("b")
    assert (client.failure_reason("a"), client.failure_reason("b")) == ("it crashed", "")
    client.request_if_alive("cancel", "b")  # the stand-in exits on its next input
    wait_until(lambda: client.is_over("b"), timeout_seconds=30)
    client._process.wait()
    client.request_if_alive("cancel", "b")
    with pytest.raises(LauncherLost, match="a line of Ray's"):
        client.request("start", "c")
    client.close(60)


@pytest.mark.parametrize(
    ("errors", "attempts"),
    [
        (["The current node timed out during startup. This", None], 2),
        (["The current node timed out during startup. This"] * 9, 3),
        (["init() got an unexpected keyword argument 'adress'"], 1),
    ],
)
def test_ray_cluster_is_started_again_only_after_a_startup_timeout(
    monkeypatch, tmp_path, errors, attempts
):
    opened, closed = [], []

    class FakeClient:
        def __init__(self, *_: object):
            opened.append(self)

        def wait_ready(self, timeout_seconds: float) -> str | None:
            return errors[len(opened) - 1]

        def close(self, timeout_seconds: float) -> None:
            closed.append(self)

    monkeypatch.setattr(ray_launcher, "RayClient", FakeClient)
    if errors[-1] is None:
        RayLauncher(RaySettings(), tmp_path, 15, 60).close()
    else:
        with pytest.raises(ConfigError, match=f"hydra/launcher=ray: {re.escape(errors[0])}"):
            RayLauncher(RaySettings(), tmp_path, 15, 60)
    assert len(opened) == attempts
    assert closed == opened  # no process is left behind


PORTS = ("port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")


@contextlib.contextmanager
def started(log: Path):
    """Run a Ray cluster with two cores on this machine; yield its address, or None if it did not start."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    numbers = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    ports = [f"--{name}={number}" for name, number in zip(PORTS, numbers, strict=True)]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *ports]
    start += ["--num-cpus=2", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    with open(log, "wb") as file:
        head = subprocess.Popen(
            start, stdout=file, stderr=file, env=os.environ | RAY, start_new_session=True
        )
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None)
        yield f"127.0.0.1:{numbers[0]}" if head.poll() is None else None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


@pytest.fixture
def cluster(tmp_path: Path):
    if find_spec("ray") is None:
        pytest.skip("no Ray: pip install 'llmdreamer[ray]'")
    # Ray gives up on an agent that needs more than 15 seconds, as happens on a busy machine: retry.
    for attempt in range(5):
        with started(tmp_path / f"ray-{attempt}.log") as address:
            if address is not None:
                yield address
                return
    pytest.fail((tmp_path / "ray-0.log").read_text())


# Ignore a token that exists on this machine.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def test_grid_runs_on_an_existing_ray_cluster(cluster: str, sweeper: Sweeper):
    launcher = ["hydra/launcher=ray", f"hydra.launcher.init.address={cluster}"]
    code, out = sweeper(*TWO_SEEDS, *launcher, FAKE_RUN_STEP_SECONDS="0.1", **RAY)
    assert code == 0, out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
    assert [row["eval/return"] for row in sweeper.rows()] == ["10.0", "20.0"]
    assert not list(sweeper.folder.glob("outputs/sweeps/g/.jobs/*"))


@pytest.fixture
def no_ray_variables(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # restores the variable after the test
        monkeypatch.delenv(name)


@pytest.mark.parametrize("init", [{}, {"address": "local"}, {"num_cpus": 2}])
def test_new_ray_cluster_requires_a_fresh_token(no_ray_variables, init):
    assert isolated_init_args(init) == {"address": "local", "include_dashboard": False} | init
    first = os.environ["RAY_AUTH_TOKEN"]
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(first) == 64
    del os.environ["RAY_AUTH_MODE"]
    isolated_init_args(init)
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_ray_auth_mode_of_the_user_is_kept(no_ray_variables, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    isolated_init_args({})
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ


def test_existing_ray_cluster_is_used_as_it_is(no_ray_variables, monkeypatch):
    assert isolated_init_args({"address": "auto"}) == {"address": "auto"}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert isolated_init_args({}) == {} and "RAY_AUTH_MODE" not in os.environ


@pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install 'llmdreamer[ray]'")
def test_grid_runs_on_a_new_ray_cluster(no_ray_variables, sweeper: Sweeper):
    launcher = ["hydra/launcher=ray", "hydra.launcher.init.num_cpus=2"]
    code, out = sweeper(
        *TWO_SEEDS, *launcher, FAKE_RUN_STEP_SECONDS="0.1", RAY_USAGE_STATS_ENABLED="0"
    )
    assert code == 0, out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
