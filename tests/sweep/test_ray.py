"""Ray: the process that talks to it, the clusters that a sweep finds or starts, and a grid on each."""

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

from llmdreamer.sweep.launchers import ray as rayengine
from llmdreamer.sweep.launchers.ray import EngineLost, Hand
from llmdreamer.sweep.launchers.ray_worker import alone
from llmdreamer.sweep.settings import RaySettings
from llmdreamer.utils.errors import ConfigError

TWO = ["seed=0,1", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=g"]


def test_an_address_where_nobody_answers_is_one_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConfigError, match=f"address=ray://127.0.0.1:{port}: .*refused"):
        rayengine._reach(f"ray://127.0.0.1:{port}")
    rayengine._reach("auto")


# The process that talks to Ray, as it may be: it hears its first request, then says or does this.
HAND = """
import pickle, sys, time
asked = pickle.load(sys.stdin.buffer)
print("a word of Ray's", file=sys.stderr, flush=True)
def say(answer):
    pickle.dump(answer, sys.stdout.buffer); sys.stdout.flush()
"""


def hand(then: str) -> Hand:
    return Hand([sys.executable, "-c", f"{HAND}\n{then}"], "the first request")


@pytest.mark.parametrize(
    ("then", "word"),
    [
        ("say(None)", None),
        ("say('no cluster, but ' + asked)", "no cluster, but the first request"),
        ("import os; os.abort()", "a word of Ray's"),
    ],
)
def test_ray_is_there_or_says_or_shows_why_not(then, word):
    one = hand(then)
    assert one.first_word(60) == word
    one.close(60)


def test_ray_that_answers_nothing_and_hears_nothing_is_waited_for_so_long_and_no_longer():
    one = hand("time.sleep(1000)")
    assert one.first_word(0.2) == "no answer within 0.2 seconds"
    one.close(0.2)
    assert one._process.returncode == -signal.SIGKILL


def test_when_ray_is_lost_so_are_its_jobs_and_the_next_is_an_error_of_one_line():
    one = hand("say(None); say(('a', 'it crashed')); sys.stdin.buffer.read(1)")
    assert one.first_word(60) is None
    wait_until(lambda: one.is_over("a"), seconds=30)
    assert not one.is_over("b")
    assert (one.why("a"), one.why("b")) == ("it crashed", "")
    one.tell("cancel", "b")  # and so it leaves
    wait_until(lambda: one.is_over("b"), seconds=30)
    one._process.wait()
    one.tell("cancel", "b")
    with pytest.raises(EngineLost, match="the connection is lost: a word of Ray's"):
        one.ask("start", "c")
    one.close(60)


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        (["The current node timed out during startup. This", None], 2),
        (["The current node timed out during startup. This"] * 9, 3),
        (["init() got an unexpected keyword argument 'adress'"], 1),
    ],
)
def test_a_cluster_that_was_too_slow_to_come_up_is_started_again(
    monkeypatch, tmp_path, words, starts
):
    begun, ended = [], []

    class Stub:
        def __init__(self, *_: object):
            begun.append(self)

        def first_word(self, within: float) -> str | None:
            return words[len(begun) - 1]

        def close(self, within: float) -> None:
            ended.append(self)

    monkeypatch.setattr(rayengine, "Hand", Stub)
    if words[-1] is None:
        rayengine.RayEngine(RaySettings(), tmp_path, 15).close()
    else:
        with pytest.raises(ConfigError, match=f"hydra/launcher=ray: {re.escape(words[0])}"):
            rayengine.RayEngine(RaySettings(), tmp_path, 15)
    assert len(begun) == starts
    assert ended == begun  # no process is left behind


PORTS = ("port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")


@contextlib.contextmanager
def started(log: Path):
    """A Ray cluster on this machine with room for two workers: its address, None if it did not come up."""
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
    # Ray waits 15 seconds for each of its agents, and dies: on a busy machine it takes some tries.
    for attempt in range(5):
        with started(tmp_path / f"ray-{attempt}.log") as address:
            if address is not None:
                yield address
                return
    pytest.fail((tmp_path / "ray-0.log").read_text())


# A token that somebody has made on this machine is none of ours.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def test_a_grid_by_a_ray_cluster_of_two_workers(cluster: str, sweeper: Sweeper):
    place = ["hydra/launcher=ray", f"hydra.launcher.init.address={cluster}"]
    code, out = sweeper(*TWO, *place, FAKE_RUN_STEP_SECONDS="0.1", **RAY)
    assert code == 0, out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
    assert [row["eval/return"] for row in sweeper.rows()] == ["10.0", "20.0"]
    assert not list(sweeper.folder.glob("outputs/sweeps/g/.jobs/*"))


@pytest.fixture
def bare(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize("init", [{}, {"address": "local"}, {"num_cpus": 2}])
def test_whoever_asks_our_cluster_for_something_must_have_its_token(bare, init):
    assert alone(init) == {"address": "local", "include_dashboard": False} | init
    first = os.environ["RAY_AUTH_TOKEN"]
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(first) == 64
    del os.environ["RAY_AUTH_MODE"]
    alone(init)
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_a_token_or_a_wish_for_none_stands(bare, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    alone({})
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ


def test_a_cluster_of_somebody_else_is_as_they_made_it(bare, monkeypatch):
    assert alone({"address": "auto"}) == {"address": "auto"}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert alone({}) == {} and "RAY_AUTH_MODE" not in os.environ


@pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install 'llmdreamer[ray]'")
def test_a_grid_by_a_cluster_of_its_own(bare, sweeper: Sweeper):
    place = ["hydra/launcher=ray", "hydra.launcher.init.num_cpus=2"]
    code, out = sweeper(*TWO, *place, FAKE_RUN_STEP_SECONDS="0.1", RAY_USAGE_STATS_ENABLED="0")
    assert code == 0, out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
