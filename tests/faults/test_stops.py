"""Test runs that are killed, stopped or started twice: the same command resumes without loss."""

import random
import signal

import pytest
from refusals import assert_names
from run_process import Command, run
from tiny_run import differing_paths, folder_contents, metric_records, saved_trainer

RUN = ("run_name=run", "resume=auto")


def newest_checkpoint(folder):
    return max((path.name for path in folder.glob("checkpoints/*.pt")), default="")


def test_repeatedly_killed_run_equals_the_uninterrupted_run(tmp_path, finished):
    rng, folder, kills = random.Random(1), tmp_path / "outputs" / "run", 0
    for _ in range(3):
        command = Command(tmp_path, *RUN)
        before, steps = newest_checkpoint(folder), rng.randint(1, 3)
        lines = folder / "metrics.jsonl"
        if command.wait_until(lambda: newest_checkpoint(folder) > before):  # noqa: B023
            count = lines.read_bytes().count(b"\n") + steps
            command.wait_until(lambda: lines.read_bytes().count(b"\n") >= count)  # noqa: B023
            command.send(signal.SIGKILL)
        code, _ = command.wait()
        kills += code == -signal.SIGKILL
    assert kills >= 2
    assert run(tmp_path, *RUN)[0] == 0
    assert differing_paths(saved_trainer(folder), saved_trainer(finished[1])) == []
    assert metric_records(folder) == metric_records(finished[1])


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)]
)
def test_repeated_signals_leave_one_checkpoint(tmp_path, finished, signum, code):
    folder = tmp_path / "outputs" / "run"
    command = Command(tmp_path, *RUN)
    assert command.wait_until(lambda: newest_checkpoint(folder) >= "step-000000000016")
    command.send(signum)
    drafts = folder / "checkpoints"
    command.wait_until(lambda: any(drafts.glob("*.tmp")))
    while any(drafts.glob("*.tmp")):  # the checkpoint is still being written
        command.send(signal.SIGTERM)
    exit_code, output = command.wait()
    assert exit_code == code
    assert f"python run.py resume={folder}" in output
    step = saved_trainer(folder)["collector"]["policy_step"]
    assert 16 <= step < 64 and newest_checkpoint(folder).startswith(f"step-{step:012d}")
    # A checkpoint starts new means, so metric records differ; the learned state does not.
    assert run(tmp_path, *RUN)[0] == 0
    assert differing_paths(saved_trainer(folder), saved_trainer(finished[1])) == []


def test_signal_between_updates_of_one_step_stops_the_run(tmp_path):
    """The first training step makes up for all delayed updates: 96 here, often thousands."""
    many_updates = (*RUN, "env.num_envs=4", "algo.learning_starts=12", "replay_ratio=4")
    folder, uninterrupted = tmp_path / "outputs" / "run", tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    command, lines = Command(tmp_path, *many_updates), folder / "metrics.jsonl"
    assert command.wait_until(lambda: lines.exists() and b"world_model/loss" in lines.read_bytes())
    command.send(signal.SIGTERM)
    assert command.wait()[0] == 143
    state = saved_trainer(folder)
    assert 5 <= state["optimizer"]["updates"] < 4 * (state["collector"]["policy_step"] - 12)
    assert run(tmp_path, *many_updates)[0] == run(uninterrupted, *many_updates)[0] == 0
    expected = saved_trainer(uninterrupted / "outputs" / "run")
    assert differing_paths(saved_trainer(folder), expected) == []


def test_second_signal_during_save_keeps_the_checkpoint(tmp_path):
    """The wide model takes some milliseconds to write, so the second signal comes in time."""
    endless = ("algo.total_steps=1000000", "backbone.width=1536")
    command, folder = Command(tmp_path, *RUN, *endless), tmp_path / "outputs" / "run"
    assert command.wait_until(lambda: newest_checkpoint(folder) >= "step-000000000016")
    command.send(signal.SIGTERM)
    assert command.wait_until(lambda: any(folder.glob("checkpoints/*.tmp")))
    command.send(signal.SIGTERM)
    code, output = command.wait()
    assert (code, output.count("python run.py resume=")) == (143, 1), output
    step = saved_trainer(folder)["collector"]["policy_step"]  # loading checks the hash in the name
    assert newest_checkpoint(folder).startswith(f"step-{step:012d}")
    assert not any(folder.glob("checkpoints/*.tmp"))


def test_signal_in_final_evaluation_stops_at_once(tmp_path):
    """The last checkpoint is already saved, so nothing is waited for."""
    slow = ("eval.final_episodes=3000",)
    command, folder = Command(tmp_path, *RUN, *slow), tmp_path / "outputs" / "run"
    assert command.wait_until(lambda: newest_checkpoint(folder) >= "step-000000000064")
    command.send(signal.SIGINT)
    code, output = command.wait(30)
    assert (code, output.count("python run.py resume=")) == (130, 1), output
    assert "Traceback" not in output and "last policy" not in output
    code, output = run(tmp_path, *RUN)
    assert code == 0 and "last policy" in output


def test_second_process_in_a_run_folder_is_refused(tmp_path):
    first = Command(tmp_path, *RUN, "algo.total_steps=1000000", "checkpoint.every=1000000")
    folder = tmp_path / "outputs" / "run"
    try:
        assert first.wait_until((folder / "metrics.jsonl").exists)
        code, output = run(tmp_path, *RUN)
        assert (code, first.process.is_alive()) == (2, True)
        assert f"{folder} is in use" in output
    finally:
        first.send(signal.SIGKILL)
        first.wait()


def test_finished_run_exits_0_and_stays_unchanged(tmp_path, copy):
    _, folder = copy
    before = folder_contents(folder)
    code, output = run(tmp_path, *RUN)
    assert (code, output.count("\n")) == (0, 1)
    assert_names(output, f"{folder} is finished", "64 policy steps")
    assert folder_contents(folder) == before | {"run.log": b"", "run.lock": b""}


def test_run_without_snapshots_killed_in_its_last_evaluation_evaluates_again(tmp_path):
    environment = ("env=gym", "env.id=reseeding:Reseeding-v0")
    slow = (*environment, "eval.final_episodes=3000")
    command, folder = Command(tmp_path, *RUN, *slow), tmp_path / "outputs" / "run"
    assert command.wait_until(lambda: newest_checkpoint(folder) >= "step-000000000064")
    command.send(signal.SIGKILL)
    assert command.wait()[0] == -signal.SIGKILL
    code, output = run(tmp_path, *RUN, *environment)
    assert code == 0 and output.count("last policy ") == 1, output
    before = folder_contents(folder)
    code, output = Command(tmp_path, "resume=outputs/run", shape=()).wait()
    assert (code, output.count("is finished")) == (0, 1), output
    changed = {"run.log", "run.lock"}
    after = folder_contents(folder)
    assert {name for name in after if before.get(name) != after[name]} <= changed


@pytest.mark.parametrize("output", ["closed pipe", "full disk"])
def test_run_whose_output_is_closed_or_full_trains_to_its_end(tmp_path, output):
    code, errors = Command(tmp_path, *RUN, output=output).wait()
    assert code == 0, errors
    assert newest_checkpoint(tmp_path / "outputs" / "run")
    assert "last policy" not in errors and "Traceback" not in errors
