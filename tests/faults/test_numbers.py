"""A run that meets numbers which are not finite: it skips, counts, and in the end gives up in one line."""

import math
from dataclasses import replace

import numpy as np
import pytest
from smallest import contents, rows, saved

from llmdreamer.envs import make_vector
from llmdreamer.replay import layout
from llmdreamer.training.loop import train
from llmdreamer.training.non_finite import find_non_finite
from llmdreamer.utils.errors import Diverged


def going_on(config, folder, steps, max_skipped):
    optimizer = replace(config.algo.optimizer, max_skipped=max_skipped)
    algo = replace(config.algo, total_steps=steps, optimizer=optimizer)
    rarely = replace(config.checkpoint, every=1000)
    return replace(config, resume=str(folder), algo=algo, checkpoint=rarely)


def poison(config, folder, where):
    """Write NaN into the rewards of the replay's file, as a disk that lies would."""
    envs = make_vector(config.env, 1, 0)
    envs.close()
    (path,) = (folder / "replay").rglob("*.steps")
    stored = np.fromfile(path, layout.step_dtype(envs.spec))
    stored["reward"][where] = math.nan
    stored.tofile(path)


def test_after_ten_in_a_row_the_run_ends_and_keeps_its_last_good_checkpoint(copy, untracked):
    config, folder = copy
    poison(config, folder, slice(None))
    before = contents(folder / "checkpoints")
    with pytest.raises(Diverged) as error:
        train(going_on(config, folder, 128, max_skipped=10), folder)
    newest = max((folder / "checkpoints").iterdir())
    assert str(error.value) == (
        f"10 updates in a row were not finite, first in the replayed reward;"
        f" the last good one is {newest}"
    )
    assert error.value.exit_code == 3
    assert contents(folder / "checkpoints") == before


def test_to_give_up_no_further_update_is_waited_for(copy, untracked):
    """Every second step owes one: the fifth and last is of step 74, and step 75 owes none."""
    config, folder = copy
    poison(config, folder, slice(None))
    with pytest.raises(Diverged, match="5 updates in a row"):
        train(going_on(config, folder, 75, max_skipped=5), folder)


def test_a_row_of_nan_costs_the_updates_that_meet_it_and_no_more(copy, untracked, caplog):
    config, folder = copy
    poison(config, folder, 40)
    train(going_on(config, folder, 128, max_skipped=1000), folder)
    state = saved(folder)
    skipped = state["non_finite"]["skipped"]
    updates = state["optimizer"]["updates"]
    assert updates == (128 - 16) // 2 and 0 < skipped < updates - 24
    assert find_non_finite({key: state[key] for key in ("agent", "optimizer")}) is None
    told = [row for _, row in rows(folder) if "optimizer/skipped_updates" in row]
    assert told[-1]["optimizer/skipped_updates"] == skipped
    # The means are of the updates that were learned from.
    means = [row["world_model/loss"] for row in told]
    assert sum(map(math.isnan, means)) < len(means) / 2
    assert "not finite, first in the replayed reward" in caplog.text


def test_a_state_that_is_not_finite_is_never_saved(copy, untracked, monkeypatch):
    """Not through an update, which is guarded: as by a fault of the memory, at the last step."""
    from llmdreamer.training.trainer import Trainer

    config, folder = copy
    before = contents(folder / "checkpoints")
    live = Trainer.live

    def harmed(trainer):
        if trainer.policy_step == 79:
            trainer.agent.behavior.return_norm.low.fill_(math.inf)
        return live(trainer)

    monkeypatch.setattr(Trainer, "live", harmed)
    with pytest.raises(
        Diverged, match=r"agent\.behavior\.return_norm\.low is not finite; the last"
    ):
        train(going_on(config, folder, 80, max_skipped=1000), folder)
    assert contents(folder / "checkpoints") == before
