"""Mamba (arXiv:2312.00752): a memory of `state_size` numbers a channel, each with its own decay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdreamer.backbones.statespace import Pass


def mix(mixer: Any, hidden: Tensor, over: Pass) -> Tensor:
    """What `MambaMixer.forward` of transformers computes, with memory run by `over`.

    Every projection is called as a module, so that adapters in any of them are trained.
    """
    rank, size = mixer.time_step_rank, mixer.ssm_state_size
    signal, gate = mixer.in_proj(hidden).chunk(2, -1)
    signal = mixer.act(over.convolve(signal, mixer.conv1d))
    delta, write, read = mixer.x_proj(signal).split([rank, size, size], -1)
    delta = F.softplus(mixer.dt_proj(delta).float())
    decay = torch.exp(delta.unsqueeze(-1) * -mixer.A_log.float().exp())
    memory = over.remember(decay, (delta * signal).unsqueeze(-1) * write.unsqueeze(-2))
    output = (memory @ read.to(memory.dtype).unsqueeze(-1)).squeeze(-1) + mixer.D * signal
    mixed: Tensor = mixer.out_proj(output * F.silu(gate))
    return mixed
