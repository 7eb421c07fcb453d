"""Check every causal model type of transformers as a backbone, at a tiny shape. Run by hand, 20 minutes.

    nice python benchmarks/causal_types.py [--types ctrl git] [--out docs/causal_types.csv]

Each type runs in a process of its own with a limit of time. It passes all backbone laws or is refused in
one line; otherwise the exit code is 1. Types that the file already has are skipped, so a stopped walk
goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import resource
import sys
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from workload import compose

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.huggingface import make_huggingface  # noqa: F401  (loaded before each fork)
from llmdreamer.testing.backbone_laws import LAWS
from llmdreamer.utils.errors import ConfigError

CONTEXT = 8
LIMIT_SECONDS = 120
"""Processor time that a type may take."""
SMALL = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "embedding_size"], 32),
    **dict.fromkeys(["word_embed_proj_dim"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["decoder_layers", "encoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "mamba_n_heads"], 4),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"], 64),
    **dict.fromkeys(["n_inner", "dff", "d_inner", "ffn_hidden_size", "dim_ff"], 64),
    **dict.fromkeys(["head_dim", "d_head", "dim_head", "v_head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "index_head_dim"], 8),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads", "index_n_heads"], 2),
    # Every expert is chosen: rounding to bfloat16 may change a choice, which is not an error.
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 2),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "top_k_experts"], 2),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace"], 1),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank", "mamba_d_head"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim"], 4),
    **dict.fromkeys(["state_size", "mamba_d_state", "mamba_state_dim"], 8),
    "is_decoder": True,
}
"""Values of a tiny shape, for those of these keys that a type's configuration has."""
SHAPES: dict[str, dict[str, Any]] = {
    # In these four, `head_dim` is the rotated part of a head.
    "axk1": {"head_dim": 4},
    "deepseek_v3": {"head_dim": 4},
    "longcat_flash": {"head_dim": 4},
    "youtu": {"head_dim": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    },
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    # Gemma 4 does not divide its attention logits by the root of the size of a head, by default 512 in the
    # last layer. So wide, bfloat16 would round half of the gradients by 18% or more.
    "gemma4_text": {"per_layer_config": {1: {"head_dim": 8}}, "hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {"per_layer_config": {1: {"head_dim": 8}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kimi_linear": {
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 32,
    },
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "reformer": {"axial_pos_embds_dim": [8, 24]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Other values, for types whose keys depend on each other."""
COLUMNS = ["type", "result", "backbone", "detail"]


def tiny_shape(model_type: str) -> dict[str, Any]:
    """Return values for `backbone.config` that make a small model."""
    try:
        default = AutoConfig.for_model(model_type)
    except StrictDataclassError:  # its own defaults are not valid
        return {}
    names = {*default.to_dict(), *default.attribute_map}
    small = {key: value for key, value in SMALL.items() if key in names}
    return small | SHAPES.get(model_type, {})


def check(model_type: str, connection: Connection) -> None:
    """Send (result, backbone, detail) of a type."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = ""
    try:
        config = compose(
            ["backbone=hf", f"backbone.model_type={model_type}", "backbone.config={}"]
            + [f"algo.world_model.hf_model.seq_len={CONTEXT}"]
        )
        config.backbone.config = tiny_shape(model_type)
        backbone = make_backbone(config).eval()
        kind = type(backbone).__name__.removesuffix("Backbone").lower()
        failed = []
        for law in LAWS:
            try:
                law(backbone)
            except Exception as error:  # noqa: BLE001  (a failed law is a result)
                failed.append(f"{law.__name__}: {first_line(error)}")
        connection.send(("fails" if failed else "passes", kind, "; ".join(failed)))
    except ConfigError as error:
        connection.send(("refused", kind, str(error)))
    except Exception as error:  # noqa: BLE001  (so is a traceback)
        place = traceback.extract_tb(error.__traceback__)[-1]
        connection.send(
            ("fails", kind, f"{first_line(error)} ({Path(place.filename).name}:{place.lineno})")
        )


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


def run(model_type: str) -> tuple[str, str, str]:
    """Check a type in a process of its own."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=check, args=(model_type, sender))
    process.start()
    sender.close()
    try:
        result: tuple[str, str, str] = receiver.recv()
        return result
    except EOFError:
        process.join()
        return "fails", "", f"not done after {LIMIT_SECONDS} s, or exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def main() -> int:
    transformers.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="*", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--out", type=Path, help="CSV file")
    args = parser.parse_args()
    rows = read_rows(args.out)
    done = {row[0] for row in rows}
    for model_type in args.types:
        if model_type not in done:
            rows.append((model_type, *run(model_type)))
            print(*rows[-1], sep=" | ", flush=True)
            write_rows(args.out, rows)
    counts = Counter(row[1] for row in rows)
    print(f"transformers {transformers.__version__}:", dict(counts))
    return int(counts["fails"] > 0)


def read_rows(path: Path | None) -> list[tuple[str, ...]]:
    """Return the rows of an earlier walk."""
    if path is None or not path.exists():
        return []
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def write_rows(path: Path | None, rows: list[tuple[str, ...]]) -> None:
    if path is not None:
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])


if __name__ == "__main__":
    sys.exit(main())
