"""What a stranger gives us is data: every payload here would leave a mark if anything of it ran."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from smallest import saved
from tiny import run

from llmdreamer.config import from_yaml
from llmdreamer.errors import ConfigError
from llmdreamer.tracking.__main__ import main as tracking

RESUME = ("run_name=run", "resume=auto")


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def test_the_payload_would_leave_a_mark(mark, tmp_path):
    torch.save(Hostile(mark), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert mark.exists()


def test_a_checkpoint_of_a_stranger_runs_nothing(copy, tmp_path, mark):
    _, folder = copy
    (folder / "tracking" / "run.json").unlink()
    draft = tmp_path / "draft"
    torch.save({"trainer": Hostile(mark), "metrics_offset": 0}, draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:16]  # as a stranger can compute it
    path = draft.rename(folder / "checkpoints" / f"step-{10**6:012d}-{digest}.pt")
    code, said = run(tmp_path, *RESUME)
    assert code == 2 and not mark.exists()
    assert said == (
        f"{path} is no checkpoint of a run: it holds more than tensors and plain values, and was"
        " not loaded\n"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["+hydra.callbacks.x._target_=os.mkdir", "+hydra.callbacks.x.path=MARK"],
        ["+hydra.callbacks.x._target_=subprocess.run", "+hydra.callbacks.x.args=[mkdir,MARK]"],
        ["hydra.callbacks.report._target_=os.mkdir", "+hydra.callbacks.report.path=MARK"],
        ["-m", "seed=0,1", "hydra.sweeper._target_=os.mkdir", "+hydra.sweeper.path=MARK"],
        ["+env.kwargs._target_=os.mkdir", "+env.kwargs.path=MARK"],
        ["run_name=../../mark"],
        ["run_name=/tmp/mark"],
        ["run_name=.."],
    ],
    ids=lambda overrides: overrides[0] if overrides[0] != "-m" else overrides[2],
)
def test_a_configuration_calls_nothing_and_leaves_its_folder_alone(tmp_path, mark, overrides):
    cwd = tmp_path / "here"
    cwd.mkdir()
    code, said = run(cwd, *(override.replace("MARK", str(mark)) for override in overrides))
    assert (code, said.count("\n")) == (2, 1), said
    assert not mark.exists() and {path.name for path in tmp_path.iterdir()} == {"here"}


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.mkdir [MARK]",
        "seed: ${oc.env:HOME}",
        "env: {kwargs: {_target_: os.mkdir, path: MARK}}\nseed: ${llmdreamer.run_dir:x}",
    ],
)
def test_a_saved_configuration_is_read_as_data(tmp_path, mark, text):
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("MARK", str(mark)))
    with pytest.raises(ConfigError):
        from_yaml(path)
    assert not mark.exists()


@pytest.mark.parametrize("model_type", ["evil", "gpt2"])
@pytest.mark.parametrize("weights", ["none", "pickle"])
def test_a_backbones_directory_runs_no_code(tmp_path, mark, model_type, weights):
    from llmdreamer.backbones.checkpoint import load_pretrained

    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
    shape = {"vocab_size": 5, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    config = {"model_type": model_type, "auto_map": auto, "architectures": ["Evil"], **shape}
    (folder / "config.json").write_text(json.dumps(config))
    if weights == "pickle":
        torch.save({"wte.weight": Hostile(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError):
        load_pretrained(str(folder), model_type, "")
    assert not mark.exists()


def test_a_password_is_in_no_file_no_line_and_not_in_mlflow(tmp_path, monkeypatch):
    secret = "hunter2secret"
    uri = f"tracking.uri=http://me:{secret}@127.0.0.1:9"
    code, said = run(
        tmp_path, "run_name=run", uri, "algo.total_steps=20", "algo.learning_starts=19"
    )
    assert code == 0 and secret not in said
    assert saved(tmp_path / "outputs" / "run")["collector"]["policy_step"] == 20
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert tracking(["sync", str(tmp_path / "outputs"), "--uri", store]) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "mlflow.db" in files and tmp_path / "outputs/run/run.log" in files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert b"me:***@127.0.0.1" in Path("outputs/run/tracking/run.json").read_bytes()
