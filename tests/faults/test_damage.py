"""Test that a damaged run folder gives a one-line error that names the file, or the run resumes."""

import os
import shutil
from pathlib import Path

import pytest
from command_line import command_in
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


@pytest.mark.parametrize(
    ("typed", "removed"),
    [
        (["seed=5", "hydra.run.dir=outputs/run"], []),
        (["resume=auto", "run_name=c", "hydra.run.dir=outputs/run"], []),
        (["run_name=run"], ["config.yaml"]),
        (["hydra.run.dir=outputs/run"], ["config.yaml", "checkpoints", "tracking"]),
    ],
)
def test_new_run_never_wipes_the_run_that_its_folder_holds(command, copy, typed, removed):
    _, folder = copy
    for path in (folder / name for name in removed):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = folder_contents(folder)
    code, _, err = command(*typed)
    assert (code, err.count("\n")) == (2, 1), err
    assert "outputs/run" in err and "Traceback" not in err
    after = folder_contents(folder)
    for log in ("run.log", "run.lock"):
        before.pop(log, None)
        after.pop(log, None)
    assert after == before


def test_resumed_run_is_refused_in_the_folder_of_another(
    untracked, copy, tmp_path, monkeypatch, capsys
):
    _, folder = copy
    shutil.copytree(folder, folder.with_name("other"))
    checkpoints = folder_contents(folder / "checkpoints")
    with command_in(tmp_path, monkeypatch, capsys) as run:
        code, _, err = run("resume=outputs/other", "hydra.run.dir=outputs/run")
    assert (code, err.count("\n")) == (2, 1), err
    assert "hydra.run.dir" in err and "outputs/run" in err
    assert folder_contents(folder / "checkpoints") == checkpoints
