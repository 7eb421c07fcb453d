"""Mamba-2 (arXiv:2405.21060): a memory of `head_dim` x `state_size` numbers a head, with one decay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdreamer.backbones.statespace import Pass


def mix(mixer: Any, hidden: Tensor, over: Pass) -> Tensor:
    """What `Mamba2Mixer.forward` of transformers computes, with memory run by `over`."""
    heads, groups, size = mixer.num_heads, mixer.n_groups, mixer.ssm_state_size
    inner = mixer.intermediate_size
    gate, signal, delta = mixer.in_proj(hidden).split([inner, mixer.conv_dim, heads], -1)
    signal = mixer.act(over.convolve(signal, mixer.conv1d))
    value, write, read = signal.split([inner, groups * size, groups * size], -1)
    value = value.unflatten(-1, (heads, -1))  # (..., heads, head_dim)
    # Heads of a group share what they write and read by: (..., heads, state_size).
    write, read = (
        part.unflatten(-1, (groups, size)).repeat_interleave(heads // groups, -2)
        for part in (write, read)
    )
    delta = F.softplus(delta.float() + mixer.dt_bias).clamp(*mixer.time_step_limit)
    decay = torch.exp(delta * -mixer.A_log.float().exp())
    drive = (delta.unsqueeze(-1) * value).unsqueeze(-1) * write.unsqueeze(-2)
    memory = over.remember(decay[..., None, None], drive)
    output = (memory @ read.to(memory.dtype).unsqueeze(-1)).squeeze(-1)
    output = output + mixer.D.unsqueeze(-1) * value
    mixed: Tensor = mixer.out_proj(mixer.norm(output.flatten(-2), gate))
    return mixed
