"""Exports a run as files of the Hugging Face ecosystem: transformers, peft, safetensors and a model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from llmdreamer.config import Config, arm
from llmdreamer.config.catalog import CATALOG
from llmdreamer.export.policy import (
    ADAPTER_FOLDER,
    MODEL_FOLDER,
    MODEL_PREFIX,
    TrainedPolicy,
    read_trained,
    write_policy,
)
from llmdreamer.tracking.record import RunFiles
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.utils.errors import ConfigError

CARD_FILE = "README.md"


def export_run(run_dir: Path, folder: Path, trust: Sequence[str], checkpoints: str) -> list[Path]:
    """Write a policy of a run into a new folder; return the files.

    The model of transformers goes to `backbone/`, its adapters to `adapter/`, all other weights to one
    safetensors file. `Policy.load` reads the folder.

    Args:
        trust, checkpoints: as in `read_trained`.

    Raises:
        ConfigError: if there is no checkpoint, the folder holds files, or the policy cannot be stored.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists: give a new folder")
    trained = read_trained(run_dir, trust, checkpoints)
    weights = trained.agent.state_dict()
    # Imported late: it imports transformers.
    from llmdreamer.backbones.saved_model import (
        has_adapters,
        save_adapters,
        save_model,
        transformers_model,
    )

    model = transformers_model(trained.agent.world_model.backbone)
    if model is not None:
        weights = {n: value for n, value in weights.items() if not n.startswith(MODEL_PREFIX)}
    try:
        write_policy(trained, folder, weights)
        if model is not None:
            save_model(model, folder / MODEL_FOLDER)
            if has_adapters(model):
                save_adapters(model, folder / ADAPTER_FOLDER, base_model(trained.config))
        result = last_return(run_dir, best=checkpoints != "checkpoints")
        (folder / CARD_FILE).write_text(model_card(trained, result, has_model=model is not None))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def base_model(config: Config) -> str:
    """Return the model that adapters belong to: directory or hub name, or the exported folder itself."""
    if not config.algo.world_model.hf_model.from_pretrained:
        return MODEL_FOLDER
    if config.backbone.path is not None:
        return config.backbone.path
    family = CATALOG.get(config.backbone.name)
    return (family and family.sizes[config.size].checkpoint) or MODEL_FOLDER


def last_return(run_dir: Path, *, best: bool) -> tuple[float, float] | None:
    """Return mean and standard deviation of the last or the best policy's evaluation; None without one."""
    name = "eval/best_return" if best else "eval/return"
    records = [record.metrics for record in read_metrics(RunFiles(run_dir).metrics)]
    values = [metrics for metrics in records if name in metrics]
    return (values[-1][name], values[-1].get(f"{name}_sd", float("nan"))) if values else None


def model_card(
    trained: TrainedPolicy, result: tuple[float, float] | None, *, has_model: bool
) -> str:
    """Return the text of the model card: what it is, its result, and how to load each part."""
    config = trained.config
    hf = config.algo.world_model.hf_model
    parts = [_table(trained, result), _LOAD_POLICY.format(env=config.env.id)]
    if has_model:
        parts.append(_LOAD_ADAPTER if hf.peft else _LOAD_MODEL)
    return "\n".join([_front_matter(config, has_model=has_model), *parts])


def _front_matter(config: Config, *, has_model: bool) -> str:
    hf = config.algo.world_model.hf_model
    values: dict[str, object] = {
        "library_name": "llmdreamer",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "world-model", "dreamer-v3", config.env.id],
    }
    # The hub refuses a card whose base model is a folder of this machine.
    base = base_model(config)
    if has_model and hf.from_pretrained and not Path(base).exists() and base != MODEL_FOLDER:
        values |= {"base_model": base}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _table(trained: TrainedPolicy, result: tuple[float, float] | None) -> str:
    config = trained.config
    measured = "not evaluated" if result is None else f"{result[0]:.1f} ± {result[1]:.1f}"
    rows = {
        "environment": config.env.id,
        "arm": arm(config),
        "backbone": f"{config.backbone.name}, size {config.size}",
        "policy steps": trained.policy_step,
        "return, mean ± sd over episodes": measured,
        "seed": config.seed,
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# DreamerV3 on {config.env.id}, trained by llmdreamer\n\n"
        "A world model with a sequence model inside, and the actor and critic that were trained in it.\n\n"
        f"| | |\n|---|---|\n{lines}\n"
    )


_LOAD_POLICY = """\
## Act with the policy

```python
import gymnasium
from llmdreamer.api import load_policy

env, policy = gymnasium.make("{env}"), load_policy("FOLDER")  # of these files
observation, _ = env.reset()
action = policy.act(observation)
```

`agent.safetensors` holds all weights that are not in the folders below, `config.yaml` every value of the run,
and `spaces.json` the spaces of observations and actions.
"""
_LOAD_MODEL = """\
## Load the sequence model alone

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER/backbone")
```

Its inputs are vectors (`inputs_embeds`) that the world model makes of latents and actions. Its table of word
embeddings has one word and is not used.
"""
_LOAD_ADAPTER = """\
## Load the sequence model and its adapters alone

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("FOLDER/backbone"), "FOLDER/adapter")
```

`backbone/` holds the frozen weights that the adapters were trained on. Inputs are vectors (`inputs_embeds`)
that the world model makes of latents and actions. The table of word embeddings has one word and is not used.
"""
