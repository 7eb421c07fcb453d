"""A study's database that nobody has opened yet: by several at one moment, and wherever it lies."""

import optuna
import pytest
from sweep_helpers import open_concurrently

from llmdreamer.sweep.studies.results import open_study
from llmdreamer.sweep.studies.storage import Store


def test_eight_processes_open_a_fresh_database_at_once(tmp_path):
    assert open_concurrently(8, None, tmp_path) == [0] * 8


@pytest.mark.parametrize("name", ["feature%2Fx", "100%", "100%25", "a?b", "a#b c@:&ü+='"])
def test_a_study_lies_in_its_folder_whatever_that_is_called(tmp_path, name):
    folder = tmp_path / name
    store = Store(None, folder, 15)
    optuna.create_study(study_name="s", storage=store.optuna)
    assert sorted(path.name for path in folder.iterdir()) == ["study.db", "study.db.lock"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert open_study(str(folder)).study_name == "s"
    assert open_study(store.url).study_name == "s"
    again = Store(store.url, folder, 15)
    assert [one.study_name for one in again.optuna.get_all_studies()] == ["s"]


def test_a_storage_as_it_is_typed_is_a_file_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Store("sqlite:///runs/own.db?timeout=7", tmp_path / "sweep", 15)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["own.db", "own.db.lock"]
