"""Test that untrusted files are only read as data: a payload that runs would create the folder `mark`."""

import hashlib
import json
import os
import runpy
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import assert_names
from run_process import ROOT, TINY, run
from safetensors.torch import save_file
from tiny_run import saved_trainer

from llmdreamer.analysis.load import CURVE_COLUMNS, Records
from llmdreamer.analysis.single_run import all_sections
from llmdreamer.cli.evaluate import main as evaluate
from llmdreamer.cli.imagine import main as imagine
from llmdreamer.cli.register import main as register
from llmdreamer.cli.sync import main as tracking
from llmdreamer.config import from_yaml, to_yaml
from llmdreamer.export.policy import CONFIG_FILE, SPACES_FILE, WEIGHTS_FILE
from llmdreamer.utils.errors import ConfigError

RESUME = ("run_name=run", "resume=auto")


class Payload:
    """Create a folder when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def test_payload_runs_when_unpickled(mark, tmp_path):
    torch.save(Payload(mark), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert mark.exists()


def test_hostile_checkpoint_runs_nothing(copy, tmp_path, mark):
    _, folder = copy
    (folder / "tracking" / "run.json").unlink()
    draft = tmp_path / "draft"
    torch.save({"trainer": Payload(mark), "metrics_offset": 0}, draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:16]  # anybody can compute it
    path = draft.rename(folder / "checkpoints" / f"step-{10**6:012d}-{digest}.pt")
    code, output = run(tmp_path, *RESUME)
    assert (code, output.count("\n")) == (2, 1) and not mark.exists()
    assert_names(output, path, "tensors and plain values")


@pytest.mark.parametrize(
    "overrides",
    [
        ["+hydra.callbacks.x._target_=os.mkdir", "+hydra.callbacks.x.path=MARK"],
        ["+hydra.callbacks.x._target_=subprocess.run", "+hydra.callbacks.x.args=[mkdir,MARK]"],
        ["hydra.callbacks.job_report._target_=os.mkdir", "+hydra.callbacks.job_report.path=MARK"],
        ["-m", "seed=0,1", "hydra.sweeper._target_=os.mkdir", "+hydra.sweeper.path=MARK"],
        ["+env.kwargs._target_=os.mkdir", "+env.kwargs.path=MARK"],
        ["run_name=../../mark"],
        ["run_name=/tmp/mark"],
        ["run_name=.."],
    ],
    ids=lambda overrides: overrides[0] if overrides[0] != "-m" else overrides[2],
)
def test_hostile_config_runs_nothing_and_writes_nothing(tmp_path, mark, overrides):
    cwd = tmp_path / "here"
    cwd.mkdir()
    code, output = run(cwd, *(override.replace("MARK", str(mark)) for override in overrides))
    assert (code, output.count("\n")) == (2, 1), output
    assert not mark.exists() and {path.name for path in tmp_path.iterdir()} == {"here"}


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.mkdir [MARK]",
        "seed: ${oc.env:HOME}",
        "env: {kwargs: {_target_: os.mkdir, path: MARK}}\nseed: ${llmdreamer.run_dir:x}",
    ],
)
def test_hostile_saved_config_runs_nothing(tmp_path, mark, text):
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("MARK", str(mark)))
    with pytest.raises(ConfigError):
        from_yaml(path)
    assert not mark.exists()


@pytest.mark.parametrize("model_type", ["evil", "gpt2"])
@pytest.mark.parametrize("weights", ["none", "pickle"])
def test_hostile_backbone_folder_runs_no_code(tmp_path, mark, model_type, weights):
    from llmdreamer.backbones.model_loading import load_pretrained

    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
    shape = {"vocab_size": 5, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    config = {"model_type": model_type, "auto_map": auto, "architectures": ["Evil"], **shape}
    (folder / "config.json").write_text(json.dumps(config))
    if weights == "pickle":
        torch.save({"wte.weight": Payload(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError):
        load_pretrained(str(folder), model_type, "")
    assert not mark.exists()


@pytest.fixture
def pickled(mark, tmp_path):
    """Return an .npy file whose array runs code when it is unpickled."""
    path = tmp_path / "pickled"
    np.save(path.open("wb"), np.array([Payload(mark)], object), allow_pickle=True)
    return path


def write_npz(path: Path, member: bytes) -> Path:
    """Write an archive of one array like numpy's, with these bytes as its content."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("windows.npy", member)
    return path


def test_pickled_array_runs_when_loaded(mark, pickled):
    np.load(pickled, allow_pickle=True)
    assert mark.exists()


def analyze_artifacts(uri: str, artifacts: str) -> str:
    """Return what the analysis says about a run's artifacts."""
    run_row = {"run_id": "1", "name": "run", "status": "FINISHED", "started": 0.0}
    run_row |= {"artifact_uri": artifacts, "replay_ratio": "1"}
    records = Records(
        "store", pd.DataFrame([run_row]), pd.DataFrame(columns=CURVE_COLUMNS), [], uri
    )
    last_section = all_sections(records)[-1]
    return " ".join(last_section.text)


@pytest.mark.parametrize("kind", ["array", "bundle", "damaged", "link", "folder", "empty"])
def test_hostile_artifact_runs_nothing(tmp_path, mark, pickled, kind):
    folder = tmp_path / "artifacts"
    folder.mkdir()
    file = folder / "open_loop.npz"
    if kind == "array":
        pickled.rename(file)
    elif kind == "bundle":
        write_npz(file, pickled.read_bytes())
    elif kind == "damaged":
        np.savez_compressed(file, windows=np.arange(500))
        content = bytearray(file.read_bytes())
        content[60:90] = bytes(30)
        file.write_bytes(content)
    elif kind == "link":
        file.symlink_to(pickled)
    elif kind == "folder":
        file.mkdir()
    else:
        file.touch()
    text = analyze_artifacts("sqlite:///none.db", folder.as_uri())
    assert text.startswith("Not shown: ") and not mark.exists()


class HostileServer(BaseHTTPRequestHandler):
    """A tracking server that lists artifacts with a path outside the download folder."""

    listed_path: ClassVar[str] = ""
    payload: ClassVar[bytes] = b""
    requested_paths: ClassVar[list[str]] = []

    def do_GET(self):
        path, _, query = self.path.partition("?")
        self.requested_paths.append(path)
        files = [{"path": self.listed_path, "is_dir": False, "file_size": 9}]
        is_listed = query.endswith("open_loop.npz") and self.listed_path
        listing = json.dumps({"files": files if is_listed else []}).encode()
        body = listing if path.endswith("/artifacts") else self.payload
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    "listed_path", ["", "../../../mark", "/../mark", "%2e%2e/%2e%2e/mark", "MARK"]
)
def test_hostile_server_writes_and_runs_nothing(tmp_path, monkeypatch, mark, pickled, listed_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # downloads go there
    monkeypatch.setattr(HostileServer, "listed_path", listed_path.replace("MARK", str(mark)))
    monkeypatch.setattr(HostileServer, "payload", pickled.read_bytes())
    HostileServer.requested_paths.clear()
    before = {path.name for path in tmp_path.iterdir()}
    with ThreadingHTTPServer(("127.0.0.1", 0), HostileServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = analyze_artifacts(
            f"http://127.0.0.1:{server.server_port}", "mlflow-artifacts:/1/1/artifacts"
        )
        server.shutdown()
    assert text.startswith("Not shown: ") and HostileServer.requested_paths
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", [CONFIG_FILE, SPACES_FILE, WEIGHTS_FILE])
def test_hostile_policy_files_run_nothing(compose, tmp_path, mark, name):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(to_yaml(compose(*TINY)))
    spaces = {"observation": {"box": [4], "dtype": "float32", "low": -9.0, "high": 9.0}}
    (folder / SPACES_FILE).write_text(json.dumps(spaces | {"action": {"discrete": 2, "start": 0}}))
    save_file({}, folder / WEIGHTS_FILE)
    if name == WEIGHTS_FILE:
        torch.save({"weight": Payload(mark)}, folder / WEIGHTS_FILE)
    else:
        (folder / name).write_text(f"seed: !!python/object/apply:os.mkdir [{mark}]")
    context = SimpleNamespace(artifacts={name: str(folder / name)}, model_config={"trust": []})
    model = runpy.run_path(str(ROOT / "llmdreamer" / "export" / "pyfunc_policy.py"))[
        "PolicyModel"
    ]()
    with pytest.raises(ConfigError, match=r"not the files of a policy|config\.yaml"):
        model.load_context(context)
    assert not mark.exists()


@pytest.mark.parametrize("main", [evaluate, register, imagine])
def test_hostile_run_folder_runs_nothing(copy, tmp_path, mark, capsys, main):
    _, folder = copy
    draft = tmp_path / "draft"
    torch.save({"trainer": Payload(mark), "metrics_offset": 0}, draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:16]
    (folder / "checkpoints" / f"step-{10**6:012d}-{digest}.pt").symlink_to(draft)
    name = ["model"] if main is register else []
    assert main([str(folder), *name]) == 2
    assert "holds more than tensors and plain values" in capsys.readouterr().err
    assert not mark.exists()


def test_sync_uploads_no_file_outside_the_run_folder(copy, tmp_path, capsys):
    _, folder = copy
    secret = tmp_path / "secret"
    secret.write_text("hunter2secret")
    (folder / "link").symlink_to(secret)
    (folder / "folder").mkdir()
    (folder / "folder" / "link").symlink_to(secret)
    paths = [str(secret), "../../secret", "link", "folder", "config.yaml"]
    lines = [json.dumps({"path": path, "folder": None}) + "\n" for path in paths]
    (folder / "tracking" / "artifacts.jsonl").write_text("".join(lines))
    assert tracking([str(folder), "--uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 0
    err = capsys.readouterr().err
    assert err.count("not uploaded") == 4
    stored = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert [path.name for path in stored] == ["config.yaml"]


@pytest.mark.parametrize(
    "override", ["+env.kwargs.api_key=hunter2secret", "+env.kwargs={api_key:hunter2secret}"]
)
def test_refused_secret_is_not_printed(tmp_path, override):
    code, output = run(tmp_path, override)
    assert code == 2 and "hunter2secret" not in output and "api_key" in output


def test_password_is_in_no_file_output_or_mlflow(tmp_path, monkeypatch):
    secret = "hunter2secret"
    uri = f"tracking.uri='http://me:{secret}@127.0.0.1:9/?sslpassword={secret}'"
    env = ["env=gym", "env.id=lightroom:LightRoom-v0", f"+env.kwargs.api_key={secret}"]
    env += ["+env.kwargs.fault=leak", f"+env.kwargs.once={tmp_path / 'broken'}"]
    short = ["+env.kwargs.show=[state]", "algo.total_steps=20", "algo.learning_starts=19"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "data"))
    code, output = run(tmp_path, "run_name=run", uri, *env, *short)
    assert code == 0 and secret not in output and "login with *** failed" in output
    assert saved_trainer(tmp_path / "outputs" / "run")["collector"]["policy_step"] == 20
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert tracking([str(tmp_path / "outputs"), "--uri", store]) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "mlflow.db" in files and tmp_path / "outputs/run/run.log" in files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert b"me:***@127.0.0.1" in Path("outputs/run/tracking/run.json").read_bytes()
