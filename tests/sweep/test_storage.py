"""New databases of studies: opened by several processes at once, and with unusual file names."""

import optuna
import pytest
from sweep_helpers import open_concurrently

from llmdreamer.sweep.studies.results import open_study
from llmdreamer.sweep.studies.storage import StudyStorage


def test_new_database_is_opened_by_eight_processes_at_once(tmp_path):
    assert open_concurrently(8, None, tmp_path) == [0] * 8


@pytest.mark.parametrize("name", ["feature%2Fx", "100%", "100%25", "a?b", "a#b c@:&ü+='"])
def test_study_database_is_in_its_folder_for_any_folder_name(tmp_path, name):
    folder = tmp_path / name
    storage = StudyStorage(None, folder, 15)
    optuna.create_study(study_name="s", storage=storage.optuna)
    assert sorted(path.name for path in folder.iterdir()) == ["study.db", "study.db.lock"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert open_study(str(folder)).study_name == "s"
    assert open_study(storage.url).study_name == "s"
    reopened = StudyStorage(storage.url, folder, 15)
    assert [study.study_name for study in reopened.optuna.get_all_studies()] == ["s"]


def test_sqlite_url_with_options_creates_the_file_without_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A variable read from a file often ends in a newline.
    StudyStorage(" sqlite:///runs/own.db?timeout=7\n", tmp_path / "sweep", 15)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["own.db", "own.db.lock"]
