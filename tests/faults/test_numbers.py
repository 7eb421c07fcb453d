"""Test that non-finite updates are skipped and counted, and that too many end the run in one line."""

import math
from dataclasses import replace

import numpy as np
import pytest
from refusals import assert_names, refused
from tiny_run import folder_contents, metric_records, saved_trainer

from llmdreamer.envs import make_vector
from llmdreamer.replay import layout
from llmdreamer.training.loop import train
from llmdreamer.training.non_finite import find_non_finite
from llmdreamer.utils.errors import Diverged


def resumed_config(config, folder, steps, max_skipped):
    optimizer = replace(config.algo.optimizer, max_skipped=max_skipped)
    algo = replace(config.algo, total_steps=steps, optimizer=optimizer)
    checkpoint = replace(config.checkpoint, every=1000)
    return replace(config, resume=str(folder), algo=algo, checkpoint=checkpoint)


def corrupt_rewards(config, folder, index):
    """Write NaN into rewards in the replay's file, as a faulty disk might."""
    envs = make_vector(config.env, 1, 0)
    envs.close()
    (path,) = (folder / "replay").rglob("*.steps")
    stored = np.fromfile(path, layout.step_dtype(envs.spec))
    stored["reward"][index] = math.nan
    stored.tofile(path)


def test_ten_non_finite_updates_end_the_run_and_keep_checkpoints(copy, untracked):
    config, folder = copy
    corrupt_rewards(config, folder, slice(None))
    before = folder_contents(folder / "checkpoints")
    newest = max((folder / "checkpoints").iterdir())
    with refused(Diverged, "10 updates", "replayed reward", newest) as error:
        train(resumed_config(config, folder, 128, max_skipped=10), folder)
    assert error.value.exit_code == 3
    assert folder_contents(folder / "checkpoints") == before


def test_diverged_run_stops_without_another_update(copy, untracked):
    """Every second step has an update: the fifth is at step 74, the last step 75 has none."""
    config, folder = copy
    corrupt_rewards(config, folder, slice(None))
    with pytest.raises(Diverged, match=r"\b5 updates"):
        train(resumed_config(config, folder, 75, max_skipped=5), folder)


def test_nan_reward_skips_only_the_updates_that_sample_it(copy, untracked, caplog):
    config, folder = copy
    corrupt_rewards(config, folder, 40)
    train(resumed_config(config, folder, 128, max_skipped=1000), folder)
    state = saved_trainer(folder)
    skipped = state["non_finite"]["total"]
    updates = state["optimizer"]["updates"]
    assert updates == (128 - 16) // 2 and 0 < skipped < updates - 24
    assert find_non_finite({key: state[key] for key in ("agent", "optimizer")}) is None
    key = "optimizer/skipped_updates"
    records = [metrics for _, metrics in metric_records(folder) if key in metrics]
    assert records[-1][key] == skipped
    # Means are over the updates that were not skipped.
    means = [metrics["world_model/loss"] for metrics in records]
    assert sum(map(math.isnan, means)) < len(means) / 2
    assert_names(caplog.text, "not finite", "replayed reward")


def test_non_finite_state_is_never_saved(copy, untracked, monkeypatch):
    """Updates are guarded, so the fault is set directly at the last step, as faulty memory would."""
    from llmdreamer.training.trainer import Trainer

    config, folder = copy
    before = folder_contents(folder / "checkpoints")
    collect_step = Trainer.collect_step

    def corrupted(trainer):
        if trainer.policy_step == 79:
            trainer.agent.behavior.return_norm.low.fill_(math.inf)
        return collect_step(trainer)

    monkeypatch.setattr(Trainer, "collect_step", corrupted)
    with refused(Diverged, "agent.behavior.return_norm.low", "not finite"):
        train(resumed_config(config, folder, 80, max_skipped=1000), folder)
    assert folder_contents(folder / "checkpoints") == before
