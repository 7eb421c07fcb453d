"""Test full disks, truncated files, flipped bits, and processes killed while they write."""

import itertools
import os
import time

import torch
from refusals import assert_names
from run_process import CONTEXT, run
from tiny_run import differing_paths, folder_contents, metric_records, saved_trainer

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints

CPU = torch.device("cpu")
RESUME = ("run_name=run", "resume=auto")


def save_endlessly(folder):
    """Save checkpoints of 2 MB without end; all weights of a checkpoint equal its step."""
    with CheckpointWriter(Checkpoints(folder, keep=2)) as writer:
        for step in itertools.count(1):
            writer.save({"weights": torch.full((1 << 19,), float(step)), "step": step}, step)


def test_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    kills_with_drafts = 0
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        process = CONTEXT.Process(target=save_endlessly, args=(folder,))
        process.start()
        while not list(folder.glob("*.pt")):
            time.sleep(0.001)
        # Twelve moments within a few milliseconds of writing, hashing, renaming and pruning.
        time.sleep(0.003 * attempt)
        process.kill()
        process.join()
        kills_with_drafts += bool(list(folder.glob("*.tmp")))
        names = [path.name for path in folder.glob("*.pt")]
        assert 1 <= len(names) <= 3
        checkpoints = Checkpoints(folder, keep=2)
        state = checkpoints.newest(CPU)
        assert max(names).startswith(f"step-{state['step']:012d}")
        assert (state["weights"] == state["step"]).all()
        checkpoints.clear_drafts()
        assert not list(folder.glob("*.tmp"))
    assert kills_with_drafts > 0  # at least one kill came while a checkpoint was written


def test_full_disk_costs_one_checkpoint_but_not_the_run(tmp_path, copy):
    _, folder = copy
    before = folder_contents(folder / "checkpoints")
    code, output = run(
        tmp_path, *RESUME, "algo.total_steps=80", "checkpoint.every=1000", file_size=2**20
    )
    assert (code, output.count("no checkpoint at policy step 80: ")) == (0, 1)
    assert "last policy" in output and "Traceback" not in output
    assert folder_contents(folder / "checkpoints") == before
    (line,) = (line for line in output.splitlines() if line.startswith("checkpoint  "))
    assert_names(line, "env step 64", "could not be written")


def test_disk_full_at_every_checkpoint_lets_the_run_finish(disk):
    folder = disk("size=1m")
    code, output = run(folder, "run_name=run", "replay.capacity=1000")
    assert (code, output.count("no checkpoint at policy step ")) == (0, 4), output
    assert output.count(": [Errno 28] No space left on device") == 4
    assert "last policy" in output and "Traceback" not in output
    assert list((folder / "outputs" / "run" / "checkpoints").iterdir()) == []
    assert "\ncheckpoint         none: " in output


def test_read_only_disk_exits_2_in_one_line(disk):
    folder = disk("size=1m,ro")
    code, output = run(folder.parent, f"output_root={folder}/outputs")
    assert (code, output.count("\n")) == (2, 1)
    assert_names(output, "no permission", folder)


def test_disk_full_for_replay_ends_the_run_in_one_line(tmp_path):
    run_dir = tmp_path / "outputs" / "new"
    limit = 2**14 + 5  # in the middle of a time step
    code, output = run(
        tmp_path,
        *("run_name=new", "algo.total_steps=5000"),
        "algo.learning_starts=4999",  # random actions are fast
        "checkpoint.every=1000000",
        file_size=limit,
    )
    assert code == 1 and "Traceback" not in output
    last_line = output.splitlines()[-1]
    assert_names(last_line, "[Errno 27]", "disk is full")
    assert last_line.endswith(f"python run.py resume={run_dir}")
    (path,) = (run_dir / "replay").rglob("*.steps")
    assert limit - 40 < path.stat().st_size <= limit


def test_disk_full_on_resume_leaves_the_run_intact(tmp_path, copy):
    """Files that are rewritten at each start stay whole, and the same command resumes later."""
    _, folder = copy
    (folder / "tracking" / "run.json").unlink()  # as if it had not finished
    before = folder_contents(folder)
    code, output = run(tmp_path, *RESUME, file_size=600)  # less than a configuration
    assert (code, output.count("\n")) == (1, 1), output
    assert_names(output, "disk is full", "[Errno 27]")
    assert before["config.yaml"] == (folder / "config.yaml").read_bytes()
    assert run(tmp_path, *RESUME)[0] == 0


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_bit_resumes_from_the_previous_checkpoint(tmp_path, copy, finished):
    _, folder = copy
    previous, newest = sorted((folder / "checkpoints").iterdir())
    flip_bit(newest)
    (folder / "tracking" / "run.json").unlink()  # as if it had not finished
    code, output = run(tmp_path, *RESUME)
    assert code == 0 and str(newest) in output and str(previous) in output
    assert differing_paths(saved_trainer(folder), saved_trainer(finished[1])) == []


def test_truncated_last_records_are_cut_and_nothing_saved_is_lost(tmp_path, copy, finished):
    _, folder = copy
    max((folder / "checkpoints").iterdir()).unlink()  # killed before the last checkpoint ...
    (folder / "tracking" / "run.json").unlink()
    (path,) = (folder / "replay").rglob("*.steps")
    for file in (path, folder / "metrics.jsonl"):  # ... and while both files were written
        os.truncate(file, file.stat().st_size - 7)
    assert run(tmp_path, *RESUME)[0] == 0
    assert differing_paths(saved_trainer(folder), saved_trainer(finished[1])) == []
    assert metric_records(folder) == metric_records(finished[1])
