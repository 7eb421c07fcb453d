"""Folder of a run, failed jobs of a sweep, and exit codes."""

import re

import pytest
from filelock import FileLock
from hydra.errors import MissingConfigException
from refusals import assert_names

from llmdreamer.config import from_yaml
from llmdreamer.tracking.record import RunFiles, RunRecord, save
from llmdreamer.utils.errors import ConfigError


class Diverged(RuntimeError):
    exit_code = 3


def test_run_gets_a_new_folder_in_the_working_directory(command, training, tmp_path):
    code, out, err = command("backbone=gru", "env=acrobot", "seed=7")
    (folder,) = (tmp_path / "outputs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_gru_Acrobot-v1_7", folder.name)
    ((cfg, run_dir),) = training.runs
    assert (cfg.seed, run_dir, code, err) == (7, folder, 0, "")
    assert out == "trained seed 7\n"
    assert re.search(r"INFO llmdreamer.training: trained seed 7", (folder / "run.log").read_text())
    assert {p.name for p in folder.iterdir()} == {
        "run.log",
        "run.lock",
        "config.yaml",
        "checkpoints",
    }


def test_environment_id_with_slashes_stays_in_one_folder(command, training, tmp_path):
    command("env=gym", "env.id=my.module:../../Grid/Big-v0")
    ((_, run_dir),) = training.runs
    assert run_dir.parent == tmp_path / "outputs"


def test_run_name_and_output_root_set_the_folder(command, training, tmp_path):
    command("run_name=first", "output_root=here")
    assert training.runs[0][1] == tmp_path / "here" / "first"


def test_link_out_of_the_output_root_is_refused(command, training, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "first").symlink_to(tmp_path.parent)
    code, _, err = command("run_name=first")
    assert (code, training.runs) == (2, [])
    assert_names(err, "run_name=first", "output_root=outputs")


def test_folder_that_holds_a_run_is_refused(command, training):
    assert command("run_name=first")[0] == 0
    code, _, err = command("run_name=first")
    assert (code, len(training.runs)) == (2, 1)
    assert err.count("\n") == 1
    assert_names(err, "resume=outputs/first", "run_name")


def test_resume_continues_in_the_same_folder(command, training, tmp_path):
    command("run_name=first", "seed=3", "algo.horizon=4")
    code, _, err = command("resume=outputs/first", "algo.total_steps=6000")
    assert (code, err) == (0, "")
    (_, first), (cfg, second) = training.runs
    assert second == first
    assert (cfg.seed, cfg.algo.horizon, cfg.algo.total_steps) == (3, 4, 6000)
    assert cfg.resume == "outputs/first"
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["first"]
    assert (first / "run.log").read_text().count("trained seed 3") == 2


AUTO = ("resume=auto", "run_name=first", "algo.horizon=4")


def leave_checkpoint(folder):
    (folder / "checkpoints" / "step-000000000009-0123456789abcdef.pt").touch()


def test_resume_auto_starts_a_run_and_then_resumes_it(command, training, tmp_path):
    folder = tmp_path / "outputs" / "first"
    for _ in range(2):  # killed before its first checkpoint, it starts again in its folder
        assert command(*AUTO)[::2] == (0, "")
    leave_checkpoint(folder)
    assert command(*AUTO, "algo.total_steps=6000", "eval.every=0", "model=XS")[::2] == (0, "")
    assert [run_dir for _, run_dir in training.runs] == [folder] * 3
    assert [cfg.resume for cfg, _ in training.runs] == ["auto", "auto", "outputs/first"]
    last = training.runs[-1][0]
    assert (last.algo.horizon, last.algo.total_steps, last.eval.every) == (4, 6000, 0)
    # The prefill follows from the total_steps that the run started with.
    assert last.algo.learning_starts == training.runs[0][0].algo.learning_starts


def test_resume_auto_refuses_a_run_with_other_values(command, training, tmp_path):
    command(*AUTO)
    leave_checkpoint(tmp_path / "outputs" / "first")
    code, _, err = command(*AUTO, "replay_ratio=1.0")
    assert (code, len(training.runs)) == (2, 1)
    assert err.count("\n") == 1
    assert_names(
        err, "resume=auto", "replay_ratio=0.5", "resume=outputs/first algo.replay_ratio=1.0"
    )


def test_resume_auto_reports_a_finished_run_and_extends_it(command, training, tmp_path):
    command(*AUTO)
    folder = tmp_path / "outputs" / "first"
    leave_checkpoint(folder)
    save(RunRecord("", "", "", {}, {}, 0.0, status="FINISHED"), RunFiles(folder).run_record)
    before = len(training.runs)
    for typed in (AUTO, [f"resume={folder}"]):
        code, out, err = command(*typed)
        assert (code, err, len(training.runs)) == (0, "", before)
        assert out.count("\n") == 1
        assert_names(out, folder, "4500")
    command(*AUTO, "algo.total_steps=6000")
    assert len(training.runs) == before + 1


def test_folder_in_use_is_refused(command, training, tmp_path):
    command("run_name=first")
    leave_checkpoint(tmp_path / "outputs" / "first")
    with FileLock(tmp_path / "outputs" / "first" / "run.lock"):
        for typed in (["resume=outputs/first"], AUTO[:2]):
            code, _, err = command(*typed)
            assert (code, len(training.runs)) == (2, 1)
            assert err.count("\n") == 1
            assert_names(err, "outputs/first", "process")


def test_basic_sweeper_runs_every_combination_once(command, training):
    code, out, _ = command("-m", "hydra/sweeper=basic", "replay_ratio=0.25,0.5", "seed=0,1")
    assert code == 0
    assert [(cfg.algo.replay_ratio, cfg.seed) for cfg, _ in training.runs] == [
        (0.25, 0), (0.25, 1), (0.5, 0), (0.5, 1),
    ]  # fmt: skip
    assert [run_dir.name for _, run_dir in training.runs] == ["0", "1", "2", "3"]
    assert "\t#3 : replay_ratio=0.5 seed=1\n" in out


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("no such environment"), 2), (Diverged("NaN"), 3)]
)
def test_failed_job_does_not_stop_the_others(command, training, error, code):
    training.errors[1] = error
    got, out, _ = command("-m", "hydra/sweeper=basic", "seed=0,1,2")
    assert got == code
    assert [cfg.seed for cfg, _ in training.runs] == [0, 1, 2]
    (line,) = (line for line in out.splitlines() if str(error) in line)
    assert_names(line, "job 1")
    assert_names(out.splitlines()[-1], "1 of 3")


def test_range_error_in_one_cell_is_reported_and_the_others_run(command, training):
    code, out, _ = command("-m", "hydra/sweeper=basic", "algo.horizon=0,5")
    assert (code, len(training.runs)) == (2, 1)
    (line,) = (line for line in out.splitlines() if "algo.horizon=0: " in line)
    assert_names(line, "job 0", ">= 1")


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("no such environment"), 2), (Diverged("NaN"), 3)]
)
def test_error_with_an_exit_code_is_one_line(command, training, error, code):
    training.errors[0] = error
    assert command()[0::2] == (code, f"{error}\n")


def test_bug_is_raised_with_its_traceback(command, training):
    training.errors[0] = ValueError("shapes differ")
    with pytest.raises(ValueError, match="shapes differ"):
        command()


def test_overrides_of_a_job_that_fails_are_printed_without_secrets(command, training, capsys):
    training.errors[0] = ValueError("shapes differ")
    secrets = ("+env.kwargs.token=Zq7hunterXY", r"+env.kwargs.password=a\,Zq7")
    with pytest.raises(ValueError, match="shapes differ"):
        command(*secrets)
    out, err = capsys.readouterr()
    assert "Zq7" not in out + err
    assert "+env.kwargs.token=***" in err


def test_refused_list_of_secrets_is_printed_without_them(command):
    code, _, err = command("+env.kwargs.token=Xw5,Zq7")
    assert code == 2
    assert "+env.kwargs.token=*** is a list" in err
    assert "Zq7" not in err and "Xw5" not in err


def test_full_error_shows_the_traceback_of_a_mistake(command, monkeypatch):
    monkeypatch.setenv("LLMDREAMER_FULL_ERROR", "1")
    with pytest.raises(MissingConfigException, match="model/Q"):
        command("model=Q")


def test_interrupt_prints_nothing(command, training):
    training.errors[0] = KeyboardInterrupt()
    assert command()[0::2] == (130, "")


def test_exit_code_of_training_is_kept(command, training):
    training.errors[0] = SystemExit(143)
    with pytest.raises(SystemExit, match="143"):
        command()


def test_saved_configuration_of_a_run_loads_unchanged(command, training, tmp_path):
    command("run_name=first")
    assert from_yaml(tmp_path / "outputs/first/config.yaml") == training.runs[0][0]


def test_run_that_works_in_its_folder_has_its_paths_where_it_was_typed(command, training, tmp_path):
    (tmp_path / "weights").mkdir()
    chdir = "hydra.job.chdir=true"
    code, _, err = command(chdir, "run_name=r", "backbone.path=weights", "backbone=smollm2")
    assert (code, err) == (0, "")
    code, _, err = command(chdir, "resume=outputs/r", "tracking.uri=sqlite:///own.db")
    assert (code, err) == (0, "")
    (first, first_folder), (second, second_folder) = training.runs
    assert first_folder == second_folder == tmp_path / "outputs" / "r"
    assert first.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert first.output_root == str(tmp_path / "outputs")
    assert first.backbone.path == str(tmp_path / "weights")
    assert second.resume == str(tmp_path / "outputs" / "r")
    assert second.tracking.uri == f"sqlite:///{tmp_path}/own.db"


def test_finished_run_that_works_in_its_folder_is_found_by_resume_auto(command, training, tmp_path):
    automatic = ("hydra.job.chdir=true", "run_name=r", "resume=auto", "algo.total_steps=64")
    assert command(*automatic)[0] == 0
    folder = tmp_path / "outputs" / "r"
    (folder / "checkpoints" / "step-000000000064-0123456789abcdef.pt").touch()
    save(RunRecord("", "", "", {}, {}, 0.0, status="FINISHED"), RunFiles(folder).run_record)
    code, out, _ = command(*automatic)
    assert (code, len(training.runs)) == (0, 1)
    assert "is finished" in out


@pytest.mark.parametrize(
    "variable", ["LLMDREAMER_DRIVER", "LLMDREAMER_TRIAL", "TORCHELASTIC_RUN_ID"]
)
def test_variable_of_another_launcher_is_refused_in_one_line(
    command, training, tmp_path, monkeypatch, variable
):
    monkeypatch.setenv(variable, "none")
    code, _, err = command()
    assert (code, training.runs, err.count("\n")) == (2, [], 1)
    assert_names(err, variable, "unset")
    assert not (tmp_path / "outputs").exists()
