"""Test which folders a run may start in."""

from dataclasses import replace

import pytest
from tiny_run import folder_contents

from llmdreamer.config import to_yaml
from llmdreamer.tracking.record import RunFiles, RunRecord, save
from llmdreamer.tracking.run_guard import refusal

FILES = [
    "checkpoints/step-000000000016-0123456789abcdef.pt",
    "config.yaml",
    "metrics.jsonl",
    "replay/meta.json",
    "replay-1/meta.json",
    "tracking/run.json",
    "best/step-000000000016-0123456789abcdef.pt",
]


def write(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


@pytest.fixture
def config(compose):
    return compose()


@pytest.mark.parametrize("name", FILES)
def test_new_run_is_refused_where_any_file_of_a_run_is(config, tmp_path, name):
    write(tmp_path, name)
    assert str(tmp_path) in refusal(tmp_path, config, in_sweep=False)


def test_new_run_may_start_beside_files_that_no_run_writes(config, tmp_path):
    for name in ("run.log", "run.lock", "notes.txt", "checkpoints/readme"):
        write(tmp_path, name)
    assert refusal(tmp_path, config, in_sweep=False) is None


def test_resumed_run_is_refused_in_another_folder(config, tmp_path):
    resumed = replace(config, resume=str(tmp_path / "a"))
    assert "hydra.run.dir" in refusal(tmp_path / "b", resumed, in_sweep=False)
    assert refusal(tmp_path / "a", resumed, in_sweep=False) is None


@pytest.mark.parametrize("in_sweep", [False, True])
def test_run_without_checkpoints_starts_over_in_its_own_folder(config, tmp_path, in_sweep):
    own = config if in_sweep else replace(config, resume="auto", run_name="a")
    (tmp_path / "config.yaml").write_text(to_yaml(own))
    for name in ("metrics.jsonl", "replay/meta.json"):
        write(tmp_path, name)
    record = RunRecord("", "", "", {}, {}, 0.0)
    save(record, RunFiles(tmp_path).run_record)
    assert refusal(tmp_path, own, in_sweep=in_sweep) is None
    save(replace(record, status="FINISHED"), RunFiles(tmp_path).run_record)
    assert refusal(tmp_path, own, in_sweep=in_sweep) is not None
    save(record, RunFiles(tmp_path).run_record)
    write(tmp_path, FILES[0])
    assert refusal(tmp_path, own, in_sweep=in_sweep) is not None


def test_resume_auto_is_refused_in_the_folder_of_another_run(config, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(replace(config, run_name="b")))
    before = folder_contents(tmp_path)
    assert (
        refusal(tmp_path, replace(config, resume="auto", run_name="a"), in_sweep=False) is not None
    )
    assert folder_contents(tmp_path) == before
