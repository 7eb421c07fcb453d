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
TIMEOUT_SECONDS = 60


@pytest.fixture
def writer(tmp_path):
    with CheckpointWriter(Checkpoints(tmp_path / "checkpoints", keep=9)) as writer:
        yield writer


def agent(value: float) -> nn.Module:
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, value)
    return module


def evaluation(*returns: float) -> Evaluation:
    return Evaluation(np.array(returns), np.ones(len(returns), np.int64))


def restored_weight(best: BestPolicy) -> float:
    target = agent(0.0)
    best.restore(target)
    return target.weight[0, 0].item()


@pytest.mark.parametrize(
    ("returns", "printed"),
    [
        ([500.0, 475.0], "487.5 ± 17.7"),
        ([0.955, 0.0], "0.48 ± 0.68"),
        ([-9.99, -9.99], "-9.99 ± 0.00"),
        ([0.0, 30.0], "15.0 ± 21.2"),
    ],
)
def test_evaluation_prints_small_returns_with_two_decimals(returns, printed):
    assert str(evaluation(*returns)) == printed


def test_best_policy_has_highest_mean_and_is_the_latest_of_equals(tmp_path, writer):
    best = BestPolicy(tmp_path, CPU, writer, resumed=False)
    assert best.policy_step is None
    best.save_if_best(agent(1.0), evaluation(10, 20), 100)
    best.save_if_best(agent(2.0), evaluation(30, 10), 200)
    best.save_if_best(agent(3.0), evaluation(20, 20), 300)
    best.save_if_best(agent(4.0), evaluation(19, 20), 400)
    assert (restored_weight(best), best.policy_step) == (3.0, 300)


def test_resumed_run_keeps_the_best_policy_and_a_new_run_discards_it(tmp_path, writer):
    first = BestPolicy(tmp_path, CPU, writer, resumed=False)
    first.save_if_best(agent(1.0), evaluation(50), 100)
    assert first.policy_step == 100
    again = BestPolicy(tmp_path, CPU, writer, resumed=True)
    again.save_if_best(agent(2.0), evaluation(40), 200)
    assert restored_weight(again) == 1.0
    new = BestPolicy(tmp_path, CPU, writer, resumed=False)
    assert new.policy_step is None
    new.save_if_best(agent(2.0), evaluation(40), 200)
    assert restored_weight(new) == 2.0


def test_better_policy_replaces_one_saved_after_the_resumed_checkpoint(tmp_path, writer):
    first = BestPolicy(tmp_path, CPU, writer, resumed=False)
    first.save_if_best(agent(1.0), evaluation(50), 200)
    assert first.policy_step == 200
    again = BestPolicy(tmp_path, CPU, writer, resumed=True)  # from a checkpoint of step 50
    again.save_if_best(agent(2.0), evaluation(60), 100)
    assert (restored_weight(again), again.policy_step) == (2.0, 100)
    assert len(list((tmp_path / "best").iterdir())) == 1


def test_damaged_best_policy_is_not_loaded_and_the_run_continues(tmp_path, writer, caplog):
    best = BestPolicy(tmp_path, CPU, writer, resumed=False)
    best.save_if_best(agent(1.0), evaluation(50), 100)
    assert best.policy_step == 100
    (path,) = (tmp_path / "best").glob("*.pt")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="no undamaged one"):
        best.restore(agent(0.0))
    again = BestPolicy(tmp_path, CPU, writer, resumed=True)
    assert "the best policy so far is discarded" in caplog.text
    again.save_if_best(agent(2.0), evaluation(1), 200)
    assert restored_weight(again) == 2.0


def test_best_policy_is_written_in_background_before_the_next_checkpoint(
    tmp_path, writer, monkeypatch
):
    reached, opened, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor):
        reached.set()
        assert opened.wait(TIMEOUT_SECONDS)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    best, trained = BestPolicy(tmp_path, CPU, writer, resumed=False), agent(1.0)
    best.save_if_best(trained, evaluation(50), 100)
    assert reached.wait(TIMEOUT_SECONDS)
    torch.nn.init.constant_(trained.weight, 9.0)
    there = []
    writer.save({"step": 100}, 100, lambda: there.extend((tmp_path / "best").glob("*.pt")))
    assert not list(tmp_path.rglob("*.pt"))
    opened.set()
    assert restored_weight(best) == 1.0
    writer.wait()
    assert len(there) == 1


def test_best_policy_that_a_full_disk_refused_does_not_count(tmp_path, writer, monkeypatch):
    best = BestPolicy(tmp_path, CPU, writer, resumed=False)
    best.save_if_best(agent(1.0), evaluation(50), 100)
    assert best.policy_step == 100

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        best.save_if_best(agent(2.0), evaluation(70), 200)
        assert best.policy_step == 100
    best.save_if_best(agent(3.0), evaluation(60), 300)
    assert (restored_weight(best), best.policy_step) == (3.0, 300)


def run_with(**parts):
    """Return a run that has these parts only."""
    run = Run.__new__(Run)
    vars(run).update(parts)
    return run


def test_final_evaluation_of_the_best_policy_uses_new_episodes(tmp_path, writer, monkeypatch):
    best, trained = BestPolicy(tmp_path, CPU, writer, resumed=False), agent(1.0)
    best.save_if_best(trained, evaluation(50), 100)
    torch.nn.init.constant_(trained.weight, 9.0)  # later training makes it worse
    calls = []

    def fake_evaluate(agent, env, episodes, seed, *, greedy):
        assert not greedy  # as the run is evaluated
        calls.append((agent.weight[0, 0].item(), episodes, seed))
        return evaluation(30, 50)

    monkeypatch.setattr(loop, "evaluate", fake_evaluate)
    config = SimpleNamespace(
        eval=SimpleNamespace(keep_best=True, final_episodes=7, greedy=False),
        env=SimpleNamespace(action_repeat=2),
        seed=3,
    )
    logged = {}
    run = run_with(
        config=config,
        trainer=SimpleNamespace(agent=trained),
        best=best,
        journal=SimpleNamespace(log=logged.update),
    )
    assert run._evaluate_best().env_step == 200
    ((weight, episodes, seed),) = calls
    assert (weight, episodes) == (1.0, 7)
    # Training environments, which are few, and evaluations during training use other seeds.
    assert abs(seed - config.seed) > 10_000
    assert logged["eval/best_return"] == 40


def test_candidate_for_best_policy_is_evaluated_on_more_episodes(tmp_path, writer, monkeypatch):
    best = BestPolicy(tmp_path, CPU, writer, resumed=False)
    calls, results = [], iter([evaluation(20, 40), evaluation(10, 10), evaluation(30, 50)])

    def fake_evaluate(agent, env, episodes, seed, *, greedy):
        assert not greedy  # as the run is evaluated
        calls.append((agent.weight[0, 0].item(), episodes, seed))
        return next(results)

    monkeypatch.setattr(loop, "evaluate", fake_evaluate)
    run = run_with(
        config=SimpleNamespace(
            eval=SimpleNamespace(keep_best=True, final_episodes=7, greedy=False), env=None, seed=3
        ),
        trainer=SimpleNamespace(clock=Clock(), policy_step=0),
        best=best,
    )

    def evaluate_and_save(value, step, *returns):
        run.trainer.agent, run.trainer.policy_step = agent(value), step
        run._maybe_save_best(evaluation(*returns))

    evaluate_and_save(1.0, 100, 50)  # a lucky result: the mean of more episodes is 30
    evaluate_and_save(2.0, 200, 29)  # below the best mean: not evaluated again
    evaluate_and_save(3.0, 300, 50)  # a lucky result: the mean of more episodes is 10
    assert (restored_weight(best), best.policy_step, best.mean) == (1.0, 100, 30)
    evaluate_and_save(4.0, 400, 30)
    assert (restored_weight(best), best.policy_step, best.mean) == (4.0, 400, 40)
    assert [(weight, episodes) for weight, episodes, _ in calls] == [(1.0, 7), (3.0, 7), (4.0, 7)]
    (seed,) = {seed for _, _, seed in calls}  # the same for all
    # These seeds are not those of training, of regular evaluations, or of the final one.
    assert min(abs(seed - other) for other in (3, 3 + SeedOffset.FINAL)) > 10_000


def test_best_policy_with_non_finite_weights_is_not_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    with CheckpointWriter(checkpoints, lambda state: check_finite(state["trainer"])) as writer:
        best = BestPolicy(tmp_path, CPU, writer, resumed=False)
        best.save_if_best(agent(float("nan")), evaluation(50), 100)
        with pytest.raises(Diverged, match="agent.weight is not finite"):
            best.restore(agent(0.0))
    assert not (tmp_path / "best").exists()
