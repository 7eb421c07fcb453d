"""Mamba (arXiv:2312.00752): each channel has `state_size` state numbers, each with its own decay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmdreamer.backbones.state_space import LayerScan


def mamba_mixer(mixer: Any, hidden: Tensor, scan: LayerScan) -> Tensor:
    """Compute what `MambaMixer.forward` of transformers computes, with the recurrence run by `scan`.

    Every projection is called as a module, so that LoRA adapters in any of them are trained.
    """
    rank, size = mixer.time_step_rank, mixer.ssm_state_size
    signal, gate = mixer.in_proj(hidden).chunk(2, -1)
    signal = mixer.act(scan.convolve(signal, mixer.conv1d))
    delta, write, read = mixer.x_proj(signal).split([rank, size, size], -1)
    delta = F.softplus(mixer.dt_proj(delta).float())
    decay = torch.exp(delta.unsqueeze(-1) * -mixer.A_log.float().exp())
    state = scan.update_state(decay, (delta * signal).unsqueeze(-1) * write.unsqueeze(-2))
    output = (state @ read.to(state.dtype).unsqueeze(-1)).squeeze(-1) + mixer.D * signal
    mixed: Tensor = mixer.out_proj(output * F.silu(gate))
    return mixed
