import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.evaluation.episodes import Evaluation
from llmdreamer.training import loop
from llmdreamer.training.best import BestPolicy
from llmdreamer.training.clock import Clock
from llmdreamer.training.loop import Run
from llmdreamer.training.trainer import check_finite
from llmdreamer.utils.errors import ConfigError, Diverged
from llmdreamer.utils.seeds import SeedOffset

CPU = torch.device("cpu")
LIMIT = 60  # seconds for anything to happen


@pytest.fixture
def saver(tmp_path):
    with CheckpointWriter(Checkpoints(tmp_path / "checkpoints", keep=9)) as one:
        yield one


def agent(value: float) -> nn.Module:
    made = nn.Linear(2, 1)
    nn.init.constant_(made.weight, value)
    return made


def scored(*returns: float) -> Evaluation:
    return Evaluation(np.array(returns), np.ones(len(returns), np.int64))


def kept(best: BestPolicy) -> float:
    target = agent(0.0)
    best.restore(target)
    return target.weight[0, 0].item()


@pytest.mark.parametrize(
    ("returns", "told"),
    [
        ([500.0, 475.0], "487.5 ± 17.7"),
        ([0.955, 0.0], "0.48 ± 0.68"),
        ([-9.99, -9.99], "-9.99 ± 0.00"),
        ([0.0, 30.0], "15.0 ± 21.2"),
    ],
)
def test_small_returns_are_told_to_a_hundredth(returns, told):
    assert str(scored(*returns)) == told


def test_the_highest_mean_is_kept_and_of_equal_ones_the_latest(tmp_path, saver):
    best = BestPolicy(tmp_path, CPU, saver, resumed=False)
    assert best.policy_step is None
    best.save_if_best(agent(1.0), scored(10, 20), 100)
    best.save_if_best(agent(2.0), scored(30, 10), 200)
    best.save_if_best(agent(3.0), scored(20, 20), 300)
    best.save_if_best(agent(4.0), scored(19, 20), 400)
    assert (kept(best), best.policy_step) == (3.0, 300)


def test_a_run_that_goes_on_keeps_what_was_best_and_a_new_one_forgets_it(tmp_path, saver):
    first = BestPolicy(tmp_path, CPU, saver, resumed=False)
    first.save_if_best(agent(1.0), scored(50), 100)
    assert first.policy_step == 100
    again = BestPolicy(tmp_path, CPU, saver, resumed=True)
    again.save_if_best(agent(2.0), scored(40), 200)
    assert kept(again) == 1.0
    new = BestPolicy(tmp_path, CPU, saver, resumed=False)
    assert new.policy_step is None
    new.save_if_best(agent(2.0), scored(40), 200)
    assert kept(new) == 2.0


def test_a_better_one_replaces_what_a_life_that_is_gone_had_found_later(tmp_path, saver):
    first = BestPolicy(tmp_path, CPU, saver, resumed=False)
    first.save_if_best(agent(1.0), scored(50), 200)
    assert first.policy_step == 200
    again = BestPolicy(tmp_path, CPU, saver, resumed=True)  # from a checkpoint of step 50
    again.save_if_best(agent(2.0), scored(60), 100)
    assert (kept(again), again.policy_step) == (2.0, 100)
    assert len(list((tmp_path / "best").iterdir())) == 1


def test_a_damaged_file_is_not_loaded_and_the_run_goes_on_without(tmp_path, saver, caplog):
    best = BestPolicy(tmp_path, CPU, saver, resumed=False)
    best.save_if_best(agent(1.0), scored(50), 100)
    assert best.policy_step == 100
    (path,) = (tmp_path / "best").glob("*.pt")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="no undamaged one"):
        best.restore(agent(0.0))
    again = BestPolicy(tmp_path, CPU, saver, resumed=True)
    assert "the best policy so far is discarded" in caplog.text
    again.save_if_best(agent(2.0), scored(1), 200)
    assert kept(again) == 2.0


def test_training_goes_on_while_it_is_written_and_a_checkpoint_comes_after_it(
    tmp_path, saver, monkeypatch
):
    reached, opened, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor):
        reached.set()
        assert opened.wait(LIMIT)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    best, trained = BestPolicy(tmp_path, CPU, saver, resumed=False), agent(1.0)
    best.save_if_best(trained, scored(50), 100)
    assert reached.wait(LIMIT)
    torch.nn.init.constant_(trained.weight, 9.0)
    there = []
    saver.save({"step": 100}, 100, lambda: there.extend((tmp_path / "best").glob("*.pt")))
    assert not list(tmp_path.rglob("*.pt"))
    opened.set()
    assert kept(best) == 1.0
    saver.wait()
    assert len(there) == 1


def test_what_a_full_disk_did_not_take_is_not_the_best(tmp_path, saver, monkeypatch):
    best = BestPolicy(tmp_path, CPU, saver, resumed=False)
    best.save_if_best(agent(1.0), scored(50), 100)
    assert best.policy_step == 100

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        best.save_if_best(agent(2.0), scored(70), 200)
        assert best.policy_step == 100
    best.save_if_best(agent(3.0), scored(60), 300)
    assert (kept(best), best.policy_step) == (3.0, 300)


def test_at_the_end_it_is_the_best_that_is_evaluated_on_episodes_it_was_not_chosen_by(
    tmp_path, saver, monkeypatch
):
    best, trained = BestPolicy(tmp_path, CPU, saver, resumed=False), agent(1.0)
    best.save_if_best(trained, scored(50), 100)
    torch.nn.init.constant_(trained.weight, 9.0)  # it got worse
    judged = []

    def judge(agent, env, episodes, seed, *, greedy):
        assert not greedy  # as the run is evaluated
        judged.append((agent.weight[0, 0].item(), episodes, seed))
        return scored(30, 50)

    monkeypatch.setattr(loop, "evaluate", judge)
    config = SimpleNamespace(
        eval=SimpleNamespace(keep_best=True, final_episodes=7, greedy=False),
        env=SimpleNamespace(action_repeat=2),
        seed=3,
    )
    logged = {}
    run = SimpleNamespace(
        config=config,
        trainer=SimpleNamespace(agent=trained),
        best=best,
        journal=SimpleNamespace(log=logged.update),
    )
    assert Run._evaluate_best(run).env_step == 200
    ((weight, episodes, seed),) = judged
    assert (weight, episodes) == (1.0, 7)
    # Training's environments, of whom there are few, and evaluations begin elsewhere.
    assert abs(seed - config.seed) > 10_000
    assert logged["eval/best_return"] == 40


def test_a_policy_that_seems_the_best_is_chosen_by_more_episodes(tmp_path, saver, monkeypatch):
    best = BestPolicy(tmp_path, CPU, saver, resumed=False)
    judged, says = [], iter([scored(20, 40), scored(10, 10), scored(30, 50)])

    def judge(agent, env, episodes, seed, *, greedy):
        assert not greedy  # as the run is evaluated
        judged.append((agent.weight[0, 0].item(), episodes, seed))
        return next(says)

    monkeypatch.setattr(loop, "evaluate", judge)
    run = SimpleNamespace(
        config=SimpleNamespace(
            eval=SimpleNamespace(keep_best=True, final_episodes=7, greedy=False), env=None, seed=3
        ),
        trainer=SimpleNamespace(clock=Clock(), policy_step=0),
        best=best,
    )

    def offer(value, step, *returns):
        run.trainer.agent, run.trainer.policy_step = agent(value), step
        Run._maybe_save_best(run, scored(*returns))

    offer(1.0, 100, 50)  # lucky: 30 on more
    offer(2.0, 200, 29)  # not looked at again
    offer(3.0, 300, 50)  # luckier: 10
    assert (kept(best), best.policy_step, best.mean) == (1.0, 100, 30)
    offer(4.0, 400, 30)
    assert (kept(best), best.policy_step, best.mean) == (4.0, 400, 40)
    assert [(weight, episodes) for weight, episodes, _ in judged] == [(1.0, 7), (3.0, 7), (4.0, 7)]
    (seed,) = {seed for _, _, seed in judged}  # the same for all
    # Not those of training, of the evaluations before, or of the one at the end.
    assert min(abs(seed - other) for other in (3, 3 + SeedOffset.FINAL)) > 10_000


def test_weights_that_are_not_finite_are_no_best_policy(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    with CheckpointWriter(checkpoints, lambda state: check_finite(state["trainer"])) as saver:
        best = BestPolicy(tmp_path, CPU, saver, resumed=False)
        best.save_if_best(agent(float("nan")), scored(50), 100)
        with pytest.raises(Diverged, match="agent.weight is not finite"):
            best.restore(agent(0.0))
    assert not (tmp_path / "best").exists()
