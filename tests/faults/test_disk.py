"""Disks that fill, files that tear, bits that flip, and processes killed while they write."""

import itertools
import os
import time

import torch
from refusals import assert_names
from smallest import contents, differing, rows, saved
from tiny import CONTEXT, run

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints

CPU = torch.device("cpu")
RESUME = ("run_name=run", "resume=auto")


def save_for_ever(folder):
    """A checkpoint of two megabytes after another, each of one number throughout."""
    with CheckpointWriter(Checkpoints(folder, keep=2)) as saver:
        for step in itertools.count(1):
            saver.save({"weights": torch.full((1 << 19,), float(step)), "step": step}, step)


def test_killed_while_it_writes_or_prunes_there_is_always_a_whole_checkpoint(tmp_path):
    debris = 0
    for life in range(12):
        folder = tmp_path / str(life)
        process = CONTEXT.Process(target=save_for_ever, args=(folder,))
        process.start()
        while not list(folder.glob("*.pt")):
            time.sleep(0.001)
        # At twelve places of what takes a few milliseconds: written, hashed, renamed, pruned.
        time.sleep(0.003 * life)
        process.kill()
        process.join()
        debris += bool(list(folder.glob("*.tmp")))
        names = [path.name for path in folder.glob("*.pt")]
        assert 1 <= len(names) <= 3
        checkpoints = Checkpoints(folder, keep=2)
        state = checkpoints.newest(CPU)
        assert max(names).startswith(f"step-{state['step']:012d}")
        assert (state["weights"] == state["step"]).all()
        checkpoints.clear_drafts()
        assert not list(folder.glob("*.tmp"))
    assert debris > 0  # or no kill came while one was written


def test_a_full_disk_costs_a_checkpoint_and_one_line_but_not_the_run(tmp_path, copy):
    _, folder = copy
    before = contents(folder / "checkpoints")
    code, said = run(
        tmp_path, *RESUME, "algo.total_steps=80", "checkpoint.every=1000", file_size=2**20
    )
    assert (code, said.count("no checkpoint at policy step 80: ")) == (0, 1)
    assert "evaluation return" in said and "Traceback" not in said
    assert contents(folder / "checkpoints") == before
    (told,) = (line for line in said.splitlines() if line.startswith("checkpoint  "))
    assert told.endswith("checkpoints (of env step 64: the last could not be written)")


def test_a_disk_that_is_full_for_every_checkpoint_takes_the_run_to_its_end(disk):
    folder = disk("size=1m")
    code, said = run(folder, "run_name=run", "replay.capacity=1000")
    assert (code, said.count("no checkpoint at policy step ")) == (0, 4), said
    assert said.count(": [Errno 28] No space left on device") == 4
    assert "evaluation return" in said and "Traceback" not in said
    assert list((folder / "outputs" / "run" / "checkpoints").iterdir()) == []
    assert "\ncheckpoint         none: it could not be written\n" in said


def test_a_disk_that_may_only_be_read_is_refused_in_one_line(disk):
    folder = disk("size=1m,ro")
    code, said = run(folder.parent, f"output_root={folder}/outputs")
    assert (code, said.count("\n")) == (2, 1)
    assert_names(said, f"{folder}/outputs", "permission")


def test_a_disk_too_full_for_experience_ends_the_run_in_one_line(tmp_path):
    run_dir = tmp_path / "outputs" / "new"
    limit = 2**14 + 5  # in the middle of a row
    code, said = run(
        tmp_path,
        *("run_name=new", "algo.total_steps=5000", "algo.learning_starts=4999"),  # at random: fast
        "checkpoint.every=1000000",
        file_size=limit,
    )
    assert code == 1 and "Traceback" not in said
    last = said.splitlines()[-1]
    assert "disk is full" in last and last.endswith(f"python run.py resume={run_dir}")
    (path,) = (run_dir / "replay").rglob("*.steps")
    assert limit - 40 < path.stat().st_size <= limit


def test_a_disk_that_fills_as_a_run_goes_on_leaves_it_whole(tmp_path, copy):
    """What is written anew at each start is not torn by it: the same command goes on later."""
    _, folder = copy
    (folder / "tracking" / "run.json").unlink()  # as if it had not come to its end
    before = contents(folder)
    code, said = run(tmp_path, *RESUME, file_size=600)  # less than a configuration
    assert (code, said.count("\n")) == (1, 1), said
    assert said.startswith("the disk is full")
    assert before["config.yaml"] == (folder / "config.yaml").read_bytes()
    assert run(tmp_path, *RESUME)[0] == 0


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_after_a_flipped_bit_the_run_goes_on_from_the_checkpoint_before(tmp_path, copy, finished):
    _, folder = copy
    before, newest = sorted((folder / "checkpoints").iterdir())
    flip(newest)
    (folder / "tracking" / "run.json").unlink()  # as if it had not come to its end
    code, said = run(tmp_path, *RESUME)
    assert code == 0 and str(newest) in said and str(before) in said
    assert differing(saved(folder), saved(finished[1])) == []


def test_torn_last_lines_are_cut_and_nothing_committed_is_lost(tmp_path, copy, finished):
    _, folder = copy
    max((folder / "checkpoints").iterdir()).unlink()  # killed before the last checkpoint ...
    (folder / "tracking" / "run.json").unlink()
    (path,) = (folder / "replay").rglob("*.steps")
    for file in (path, folder / "metrics.jsonl"):  # ... in the middle of a row of each
        os.truncate(file, file.stat().st_size - 7)
    assert run(tmp_path, *RESUME)[0] == 0
    assert differing(saved(folder), saved(finished[1])) == []
    assert rows(folder) == rows(finished[1])
