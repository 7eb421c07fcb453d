import base64
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from refusals import refused

from llmdreamer.config.metrics import METRICS
from llmdreamer.tracking.experiment import KIND_TAG, MODEL_TRAINING, NOTE, NOTE_TAG, VIEW_TAG
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.store import (
    connect,
    ensure_experiment,
    metric_key,
    resolve_uri,
    shorten,
    ui_command,
)
from llmdreamer.utils.errors import ConfigError


@pytest.mark.parametrize("uri", [None, ""])  # a variable that is set to nothing
def test_resolve_uri_without_a_value_is_a_database_in_the_folder(tmp_path: Path, uri: str | None):
    assert resolve_uri(uri, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_resolve_uri_makes_a_database_path_absolute(tmp_path: Path):
    assert resolve_uri("sqlite:///runs/a.db", tmp_path) == f"sqlite:///{tmp_path}/runs/a.db"
    assert resolve_uri("sqlite:////x/a.db", tmp_path) == "sqlite:////x/a.db"


@pytest.mark.parametrize(
    "uri",
    ["http://localhost:5000", "https://host", "postgresql+psycopg2://u:p@h/db", "mysql://h/d"],
)
def test_resolve_uri_keeps_a_server_uri(tmp_path: Path, uri: str):
    assert resolve_uri(uri, tmp_path) == uri


@pytest.mark.parametrize("around", ["{}\n", " {}", "\t{} \r\n"])
def test_resolve_uri_strips_what_surrounds_the_uri(tmp_path: Path, around: str):
    for uri in ("http://localhost:5000", f"sqlite:///{tmp_path}/a.db"):
        assert resolve_uri(around.format(uri), tmp_path) == uri
    assert resolve_uri(around.format(""), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    with refused(ConfigError, "tracking.uri=", "one line"):
        resolve_uri("http://host\n:5000", tmp_path)


def test_resolve_uri_refuses_the_path_of_a_database_and_names_its_uri(tmp_path: Path):
    (tmp_path / "store").touch()
    for path in ("mlflow.db", "./mlflow.db", f"{tmp_path}/mlflow.db", "file:mlflow.db", "store"):
        name = path.rpartition("/")[2].rpartition(":")[2]
        advice = f"use tracking.uri=sqlite:///{tmp_path}/{name}"
        with refused(ConfigError, f"tracking.uri={path}", advice) as error:
            resolve_uri(path, tmp_path)
        assert str(error.value).endswith(advice)


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:mlruns", "file:///x/mlruns", "/x"])
def test_resolve_uri_refuses_a_folder_and_suggests_a_database(tmp_path: Path, uri: str):
    with refused(ConfigError, f"tracking.uri={uri}", "sqlite:////", "mlflow.db"):
        resolve_uri(uri, tmp_path)


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("postgres://h/db", "did you mean 'postgresql'"),
        ("ftp://h", "choose from"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("http:localhost", "names no host"),
    ],
)
def test_resolve_uri_refuses_what_cannot_be_a_store(tmp_path: Path, uri: str, advice: str):
    with refused(ConfigError, advice):
        resolve_uri(uri, tmp_path)


@pytest.mark.parametrize("uri", ["http://u:pw@[::1", "http://u:pw@h:abc", "https://u:pw@h:99999"])
def test_resolve_uri_refuses_a_bad_address_without_its_password(tmp_path: Path, uri: str):
    with refused(ConfigError, "tracking.uri=", "not a URI") as error:
        resolve_uri(uri, tmp_path)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("name", ["feature%2Fx", "100%25", "a?b"])
def test_resolve_uri_refuses_a_folder_that_a_uri_cannot_express(tmp_path: Path, name: str):
    """Some versions read `%2F` as a slash; MLflow then creates folders of both names."""
    folder = tmp_path / name
    folder.mkdir()
    advice = "tracking.uri=sqlite:////ANOTHER/mlflow.db"
    for uri in (None, "sqlite:///runs.db"):
        with refused(ConfigError, folder, advice):
            resolve_uri(uri, folder)
    if "?" not in name:
        with refused(ConfigError, folder, advice):
            resolve_uri(f"sqlite:///{folder}/a.db?timeout=3", tmp_path)
    assert list(folder.iterdir()) == []


def test_store_in_a_folder_with_unusual_characters_is_created_there(tmp_path: Path):
    folder = tmp_path / "100% a#b c@:&ü+='"
    folder.mkdir()
    uri = resolve_uri(None, folder)
    assert uri == f"sqlite:///{folder}/mlflow.db"
    ensure_experiment(uri, "x")
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    assert list(tmp_path.iterdir()) == [folder]


# The children are forked from one process, so that MLflow is imported once. They start together when the
# parent closes its end of the pipe.
CREATE_STORE = """
import os, sys
from llmdreamer.tracking import ensure_experiment
from llmdreamer.tracking.store import connect
connect("http://localhost:1")  # imports MLflow with our settings of its messages
import mlflow.store.tracking.sqlalchemy_store
read_end, write_end = os.pipe()
children = []
for _ in range(8):
    if (child := os.fork()) == 0:
        os.close(write_end)
        os.read(read_end, 1)
        answer = ensure_experiment(sys.argv[1], "first")
        os.write(1, f"{answer}\\n".encode())
        os._exit(0)
    children.append(child)
os.close(write_end)
codes = [os.waitpid(child, 0)[1] for child in children]
sys.exit(1 if any(codes) else 0)
"""


def test_processes_that_create_one_database_at_once_all_succeed(tmp_path: Path):
    """Without the lock, 7 of 8 processes failed in MLflow's migration."""
    command = [sys.executable, "-c", CREATE_STORE, f"sqlite:///{tmp_path}/new/mlflow.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # no messages about migrations
    answers = done.stdout.split()
    assert len(answers) == 8 and len({*answers}) == 1  # all found the same experiment


@pytest.mark.parametrize("before", ["true", "false"])
def test_connect_disables_unpickling_whatever_the_environment_says(uri, monkeypatch, before):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", before)
    ensure_experiment(uri, "x")
    connect(uri)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_experiment_that_is_new_has_a_kind_a_description_and_a_view(uri: str):
    ensure_experiment(uri, "x")
    tags = connect(uri).get_experiment_by_name("x").tags
    assert tags[KIND_TAG] == MODEL_TRAINING and tags[NOTE_TAG] == NOTE
    packed = json.loads(tags[VIEW_TAG])["state"].removeprefix("deflate;")
    view = json.loads(zlib.decompress(base64.b64decode(packed)))
    metrics = [name for name in view["selectedColumns"] if name.startswith("metrics.")]
    assert "metrics.`return`" in metrics
    logged_by_runs = {name.split("`")[1] for name in metrics} - {"best_value"}
    assert logged_by_runs <= METRICS


def test_experiment_of_a_user_gets_a_kind_and_keeps_its_own_tags(uri: str):
    client = connect(uri)
    client.create_experiment("plain", tags={NOTE_TAG: "mine"})
    client.create_experiment("chosen", tags={KIND_TAG: "genai_development"})
    for name in ("plain", "chosen"):
        ensure_experiment(uri, name)
    assert client.get_experiment_by_name("plain").tags == {
        NOTE_TAG: "mine",
        KIND_TAG: MODEL_TRAINING,
    }
    assert client.get_experiment_by_name("chosen").tags == {KIND_TAG: "genai_development"}


def test_artifact_location_of_a_sqlite_store_is_absolute(uri: str, tmp_path: Path):
    ensure_experiment(uri, "default")
    ensure_experiment(uri, "chosen", tmp_path / "other")
    client = connect(uri)
    experiments = [client.get_experiment_by_name(name) for name in ("default", "chosen")]
    assert [experiment.artifact_location for experiment in experiments] == [
        f"file://{tmp_path}/mlartifacts",
        f"file://{tmp_path}/other",
    ]


def test_database_that_cannot_be_opened_raises_in_one_line(tmp_path: Path):
    (tmp_path / "mlflow.db").mkdir()
    with refused(TrackingError, "unable to open database file"):  # SQLite's message
        ensure_experiment(f"sqlite:///{tmp_path}/mlflow.db", "x")


def test_missing_database_server_fails_without_showing_the_password():
    with pytest.raises(TrackingError, match="unreachable") as caught:
        ensure_experiment("postgresql://me:hunter2@127.0.0.1:1/db", "x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("loss/world model", "loss/world model"),
        ("kl[0]=x", "kl_0__x"),
        ("/a//../b/", "a/b"),
        ("", "_"),
        ("a" * 300, "a" * 250),
    ],
)
def test_metric_key_returns_a_name_that_mlflow_accepts(name: str, key: str):
    assert metric_key(name) == key


def test_shorten_cuts_a_long_value_with_a_note():
    assert shorten("a" * 6000) == "a" * 6000
    short = shorten("a" * 7000)
    assert len(short) == 6000
    assert short.endswith("[cut: 7000 characters in all]")


def test_ui_command_names_the_database():
    assert ui_command("sqlite:////x/mlflow.db") == (
        "mlflow ui --backend-store-uri sqlite:////x/mlflow.db"
    )
    assert ui_command("http://host:5000") == "http://host:5000"
