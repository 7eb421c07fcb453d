"""A run's folder that is not as the run left it: one line that names the file, or the run goes on."""

import os
import shutil
from pathlib import Path

import pytest
from smallest import contents
from tiny import Command

RESUME = ("run_name=run", "resume=auto")


def newest(folder):
    return max(path for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def again(command, copy):
    """The command that goes on with a run which was stopped, in this process: (its folder, it)."""
    _, folder = copy
    record = folder / "tracking" / "run.json"
    record.write_text(record.read_text().replace('"FINISHED"', '"KILLED"'))
    return folder, lambda: command(*RESUME)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def lead_nowhere(path):
    path.unlink()
    path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("harm", [halve, make_a_folder, lead_nowhere])
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
def test_a_damaged_file_is_one_line_that_names_it_or_the_run_goes_on(again, harm, name):
    folder, go_on = again
    (folder / "run.lock").touch()
    checkpoints = contents(folder / "checkpoints")
    harm(folder / name)
    code, _, err = go_on()
    assert "Traceback" not in err and err.count("\n") == (code != 0), err
    assert code in (0, 1, 2) and (code == 0 or Path(name).parts[0] in err), err
    assert code == 0 or checkpoints == contents(folder / "checkpoints")


def test_a_newest_checkpoint_that_is_a_folder_is_passed_over(again):
    folder, go_on = again
    make_a_folder(newest(folder))
    assert go_on()[::2] == (0, "")


def test_a_folder_that_is_removed_under_a_run_ends_it_in_one_line(tmp_path):
    folder = tmp_path / "outputs" / "run"
    command = Command(tmp_path, *RESUME, "algo.total_steps=2000", "eval.every=50")
    assert command.until(
        lambda: (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("*.pt"))
    )
    shutil.rmtree(folder, ignore_errors=True)
    code, said = command.wait()
    assert code == 1 and "Traceback" not in said, said
    assert "No such file or directory" in said.splitlines()[-1] and str(folder) in said
