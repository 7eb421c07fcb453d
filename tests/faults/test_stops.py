"""Runs that are killed, stopped and started twice: the same command goes on, and nothing is lost."""

import random
import signal

import pytest
from smallest import contents, differing, rows, saved
from tiny import Command, run

RUN = ("run_name=run", "resume=auto")


def newest(folder):
    return max((path.name for path in folder.glob("checkpoints/*.pt")), default="")


def test_killed_again_and_again_it_is_the_uninterrupted_run(tmp_path, finished):
    pick, folder, kills = random.Random(1), tmp_path / "outputs" / "run", 0
    for _ in range(3):
        command = Command(tmp_path, *RUN)
        before, steps = newest(folder), pick.randint(1, 3)
        lines = folder / "metrics.jsonl"
        if command.until(lambda: newest(folder) > before):  # noqa: B023
            count = lines.read_bytes().count(b"\n") + steps
            command.until(lambda: lines.read_bytes().count(b"\n") >= count)  # noqa: B023
            command.send(signal.SIGKILL)
        code, _ = command.wait()
        kills += code == -signal.SIGKILL
    assert kills >= 2
    assert run(tmp_path, *RUN)[0] == 0
    assert differing(saved(folder), saved(finished[1])) == []
    assert rows(folder) == rows(finished[1])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_leaves_a_checkpoint_however_often_it_comes(tmp_path, finished, signum, code):
    folder = tmp_path / "outputs" / "run"
    command = Command(tmp_path, *RUN)
    assert command.until(lambda: newest(folder) >= "step-000000000016")
    command.send(signum)
    drafts = folder / "checkpoints"
    command.until(lambda: any(drafts.glob("*.tmp")))
    while any(drafts.glob("*.tmp")):  # while the checkpoint is written
        command.send(signal.SIGTERM)
    stopped, said = command.wait()
    assert stopped == code
    assert f"stopped; resume with: python run.py resume={folder}" in said
    step = saved(folder)["collector"]["policy_step"]
    assert 16 <= step < 64 and newest(folder).startswith(f"step-{step:012d}")
    # A checkpoint ends a row of means, so the rows differ; what was learned does not.
    assert run(tmp_path, *RUN)[0] == 0
    assert differing(saved(folder), saved(finished[1])) == []


def test_a_signal_between_the_updates_of_one_step_is_heard(tmp_path):
    """The first updates make up for all that waited for a sequence: here 96 at once, elsewhere thousands."""
    many = (*RUN, "env.num_envs=4", "algo.learning_starts=12", "replay_ratio=4")
    folder, whole = tmp_path / "outputs" / "run", tmp_path / "whole"
    whole.mkdir()
    command, lines = Command(tmp_path, *many), folder / "metrics.jsonl"
    assert command.until(lambda: lines.exists() and b"world_model/loss" in lines.read_bytes())
    command.send(signal.SIGTERM)
    assert command.wait()[0] == 143
    state = saved(folder)
    assert 5 <= state["optimizer"]["updates"] < 4 * (state["collector"]["policy_step"] - 12)
    assert run(tmp_path, *many)[0] == run(whole, *many)[0] == 0
    assert differing(saved(folder), saved(whole / "outputs" / "run")) == []


def test_a_second_signal_while_the_checkpoint_is_written_spoils_nothing(tmp_path):
    """Of a model that takes some milliseconds to write, so that the second comes in time."""
    endless = ("algo.total_steps=1000000", "backbone.width=1536")
    command, folder = Command(tmp_path, *RUN, *endless), tmp_path / "outputs" / "run"
    assert command.until(lambda: newest(folder) >= "step-000000000016")
    command.send(signal.SIGTERM)
    assert command.until(lambda: any(folder.glob("checkpoints/*.tmp")))
    command.send(signal.SIGTERM)
    code, said = command.wait()
    assert (code, said.count("stopped; resume with: python run.py resume=")) == (143, 1), said
    step = saved(folder)["collector"]["policy_step"]  # its hash is that of its name
    assert newest(folder).startswith(f"step-{step:012d}")
    assert not any(folder.glob("checkpoints/*.tmp"))


def test_a_signal_in_the_last_evaluation_ends_it_at_once(tmp_path):
    """The last checkpoint is there, so there is nothing to wait for."""
    slow = ("eval.final_episodes=3000",)
    command, folder = Command(tmp_path, *RUN, *slow), tmp_path / "outputs" / "run"
    assert command.until(lambda: newest(folder) >= "step-000000000064")
    command.send(signal.SIGINT)
    code, said = command.wait(30)
    assert (code, said.count("stopped; resume with: python run.py resume=")) == (130, 1), said
    assert "Traceback" not in said and "evaluation return" not in said
    code, said = run(tmp_path, *RUN)
    assert code == 0 and "evaluation return" in said


def test_of_two_processes_in_one_folder_the_second_is_refused(tmp_path):
    first = Command(tmp_path, *RUN, "algo.total_steps=1000000", "checkpoint.every=1000000")
    folder = tmp_path / "outputs" / "run"
    try:
        assert first.until((folder / "metrics.jsonl").exists)
        code, said = run(tmp_path, *RUN)
        assert (code, first.process.is_alive()) == (2, True)
        assert f"{folder} is in use: another process trains in it\n" in said
    finally:
        first.send(signal.SIGKILL)
        first.wait()


def test_a_finished_run_says_so_and_is_left_alone(tmp_path, copy):
    _, folder = copy
    before = contents(folder)
    code, said = run(tmp_path, *RUN)
    assert (code, said) == (0, f"{folder} is finished: 64 policy steps are done\n")
    assert contents(folder) == before | {"run.log": b"", "run.lock": b""}
