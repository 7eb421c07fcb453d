"""Files of `llmdreamer export`: transformers, peft and `load_policy` read them without llmdreamer's run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from refusals import assert_names
from trained_policy import ARMS, CHECKPOINT, left_behind, run_episodes
from transformers import AutoModel

from llmdreamer.api import load_policy
from llmdreamer.backbones import saved_model
from llmdreamer.cli.export import main as export
from llmdreamer.export.policy import MODEL_PREFIX

torch.set_num_threads(1)
RANDOM_LORA = ["backbone=gpt2", "peft=true", "lora.r=4"]


@pytest.fixture
def exported(compose, tmp_path, capsys):
    """Return a function that makes a run of these overrides and exports it: agent and folder."""

    def make(*overrides):
        agent = left_behind(tmp_path / "run", compose(*overrides, "env.max_episode_steps=30"))
        (tmp_path / "run" / "metrics.jsonl").write_text(RECORD)
        assert export([str(tmp_path / "run"), str(tmp_path / "files")]) == 0
        return agent.eval(), tmp_path / "files"

    return make


RECORD = (
    json.dumps(
        {
            "time": 0,
            "env_step": 16,
            "policy_step": 16,
            "metrics": {"eval/return": 21.25, "eval/return_sd": 3.5},
        }
    )
    + "\n"
)


def hidden_states(model, width):
    tokens = torch.arange(5 * width).cos().view(1, 5, width)
    with torch.no_grad():
        return model.eval()(inputs_embeds=tokens).last_hidden_state


@pytest.mark.parametrize("overrides", [*ARMS.values(), RANDOM_LORA], ids=[*ARMS, "random-lora"])
def test_policy_of_exported_files_acts_as_the_run(overrides, exported, tmp_path):
    _, folder = exported(*overrides)
    for seed in (0, 1):
        expected = run_episodes(load_policy(tmp_path / "run"), "CartPole-v1", seed)
        assert run_episodes(load_policy(folder), "CartPole-v1", seed) == expected


def test_exported_backbone_loads_in_transformers_with_equal_outputs(exported):
    agent, folder = exported("backbone=gpt2")
    model = agent.world_model.backbone.model
    loaded, info = AutoModel.from_pretrained(folder / "backbone", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(hidden_states(loaded, 128), hidden_states(model, 128))


@pytest.mark.parametrize("overrides", [RANDOM_LORA, ARMS["pretrained-lora"]])
def test_exported_adapters_load_in_peft_with_equal_outputs(overrides, exported):
    agent, folder = exported(*overrides)
    model = agent.world_model.backbone.model
    base = AutoModel.from_pretrained(folder / "backbone")
    without = hidden_states(base, 128)
    loaded = PeftModel.from_pretrained(base, folder / "adapter")
    torch.testing.assert_close(hidden_states(loaded, 128), hidden_states(model, 128))
    assert (hidden_states(loaded, 128) - without).abs().max() > 1e-3


def test_adapters_of_a_pretrained_run_load_onto_the_original_checkpoint(exported):
    agent, folder = exported(*ARMS["pretrained-lora"])
    named = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(CHECKPOINT)
    original = AutoModel.from_pretrained(CHECKPOINT)
    loaded = PeftModel.from_pretrained(original, folder / "adapter")
    model = agent.world_model.backbone.model
    torch.testing.assert_close(hidden_states(loaded, 128), hidden_states(model, 128))


def test_agent_file_holds_no_weight_of_the_model(exported):
    from safetensors import safe_open

    agent, folder = exported(*RANDOM_LORA)
    with safe_open(folder / "agent.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == {n for n in agent.state_dict() if not n.startswith(MODEL_PREFIX)}


def test_card_names_environment_arm_and_result(exported):
    _, folder = exported(*ARMS["pretrained-lora"])
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "llmdreamer"
    assert "base_model" not in yaml.safe_load(front)  # a folder of this machine
    assert_names(text, "CartPole-v1", "pretrained-lora", "21.2 ± 3.5", "PeftModel.from_pretrained")


def test_recurrent_backbone_is_exported_without_a_model_folder(exported):
    _, folder = exported(*ARMS["reference"])
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.yaml", "spaces.json", "agent.safetensors")
    }


def test_export_into_a_folder_with_files_is_refused(exported, tmp_path, capsys):
    _, folder = exported("backbone=gru")
    capsys.readouterr()
    assert export([str(tmp_path / "run"), str(folder)]) == 2
    assert_names(capsys.readouterr().err, folder, "new folder")


def test_best_policy_is_exported_on_request(compose, tmp_path):
    left_behind(tmp_path / "run", compose("backbone=gru"))
    (tmp_path / "run" / "metrics.jsonl").write_text(RECORD)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "run" / "best")
    (tmp_path / "run" / "checkpoints").mkdir()
    assert export([str(tmp_path / "run"), str(tmp_path / "last")]) == 2
    assert export([str(tmp_path / "run"), str(tmp_path / "files"), "--best"]) == 0
    action = load_policy(tmp_path / "run", best=True).act(np.zeros(4, np.float32))
    assert action == load_policy(tmp_path / "files").act(np.zeros(4, np.float32))


def test_push_creates_the_repository_and_uploads_all_files(compose, tmp_path, monkeypatch, capsys):
    calls = []
    hub = SimpleNamespace(
        create_repo=lambda name, **options: calls.append((name, options)) or f"https://hub/{name}",
        upload_folder=lambda **options: calls.append(options),
    )
    monkeypatch.setattr(saved_model, "HfApi", lambda: hub)
    left_behind(tmp_path / "run", compose("backbone=gru"))
    (tmp_path / "run" / "metrics.jsonl").write_text(RECORD)
    argv = [
        str(tmp_path / "run"),
        str(tmp_path / "files"),
        "--push-to-hub",
        "me/policy",
        "--private",
    ]
    assert export(argv) == 0
    assert calls[0] == ("me/policy", {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/policy", tmp_path / "files")
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/me/policy"


def test_push_to_an_unreachable_hub_is_one_line_and_keeps_the_files(compose, tmp_path, capsys):
    # Tests set HF_HUB_OFFLINE, so the hub's own client refuses.
    left_behind(tmp_path / "run", compose("backbone=gru"))
    (tmp_path / "run" / "metrics.jsonl").write_text(RECORD)
    argv = [str(tmp_path / "run"), str(tmp_path / "files"), "--push-to-hub", "me/policy"]
    assert export(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert_names(error, "--push-to-hub me/policy", tmp_path / "files")
    assert (tmp_path / "files" / "agent.safetensors").exists()
