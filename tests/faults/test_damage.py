"""Test that a damaged run folder gives a one-line error that names the file, or the run resumes."""

import os
import shutil
from pathlib import Path

import pytest
from run_process import Command
from tiny_run import folder_contents

RESUME = ("run_name=run", "resume=auto")


def newest_checkpoint(folder):
    return max(path for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def stopped_run(command, copy):
    """Return the folder of a stopped run, and a function that resumes it in this process."""
    _, folder = copy
    record = folder / "tracking" / "run.json"
    record.write_text(record.read_text().replace('"FINISHED"', '"KILLED"'))
    return folder, lambda: command(*RESUME)


def truncate_to_half(path):
    os.truncate(path, path.stat().st_size // 2)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_broken_link(path):
    path.unlink()
    path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("damage", [truncate_to_half, replace_by_folder, replace_by_broken_link])
@pytest.mark.parametrize(
    "name",
    [
        *(
            "config.yaml",
            "metrics.jsonl",
            "replay/meta.json",
            "replay/stream-0000/000000000000.steps",
        ),
        *("tracking/run.json", "run.lock"),
    ],
)
def test_damaged_file_is_named_in_one_line_or_run_resumes(stopped_run, damage, name):
    folder, resume = stopped_run
    (folder / "run.lock").touch()
    checkpoints = folder_contents(folder / "checkpoints")
    damage(folder / name)
    code, _, err = resume()
    assert "Traceback" not in err and err.count("\n") == (code != 0), err
    assert code in (0, 1, 2) and (code == 0 or Path(name).parts[0] in err), err
    assert code == 0 or checkpoints == folder_contents(folder / "checkpoints")


def test_newest_checkpoint_that_is_a_folder_is_skipped(stopped_run):
    folder, resume = stopped_run
    replace_by_folder(newest_checkpoint(folder))
    assert resume()[::2] == (0, "")


def test_removed_run_folder_ends_the_run_in_one_line(tmp_path):
    folder = tmp_path / "outputs" / "run"
    command = Command(tmp_path, *RESUME, "algo.total_steps=2000", "eval.every=50")
    assert command.wait_until(
        lambda: (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("*.pt"))
    )
    shutil.rmtree(folder, ignore_errors=True)
    code, output = command.wait()
    assert code == 1 and "Traceback" not in output, output
    assert "No such file or directory" in output.splitlines()[-1] and str(folder) in output
