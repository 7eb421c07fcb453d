"""Mamba-2 (arXiv:2405.21060): each head has `head_dim` x `state_size` state numbers with one decay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdreamer.backbones.state_space import LayerScan


def mamba2_mixer(mixer: Any, hidden: Tensor, scan: LayerScan) -> Tensor:
    """Compute what `Mamba2Mixer.forward` of transformers computes, with the recurrence run by `scan`.

    Raises:
        ValueError: if the heads cannot be divided into groups of equal size.
    """
    heads, groups, size = mixer.num_heads, mixer.n_groups, mixer.ssm_state_size
    if heads % groups:
        raise ValueError(f"n_groups={groups} does not divide the {heads} heads")
    inner = mixer.intermediate_size
    gate, signal, delta = mixer.in_proj(hidden).split([inner, mixer.conv_dim, heads], -1)
    signal = mixer.act(scan.convolve(signal, mixer.conv1d))
    value, write, read = signal.split([inner, groups * size, groups * size], -1)
    value = value.unflatten(-1, (heads, -1))  # (..., heads, head_dim)
    # The heads of a group share the vectors that write and read the state: (..., heads, state_size).
    write, read = (
        vectors.unflatten(-1, (groups, size)).repeat_interleave(heads // groups, -2)
        for vectors in (write, read)
    )
    delta = F.softplus(delta.float() + mixer.dt_bias).clamp(*mixer.time_step_limit)
    decay = torch.exp(delta * -mixer.A_log.float().exp())
    drive = (delta.unsqueeze(-1) * value).unsqueeze(-1) * write.unsqueeze(-2)
    state = scan.update_state(decay[..., None, None], drive)
    output = (state @ read.to(state.dtype).unsqueeze(-1)).squeeze(-1)
    output = output + mixer.D.unsqueeze(-1) * value
    mixed: Tensor = mixer.out_proj(mixer.norm(output.flatten(-2), gate))
    return mixed
