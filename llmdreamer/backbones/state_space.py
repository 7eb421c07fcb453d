"""State-space models (the Mamba family) as backbones: a scan over whole sequences, and single steps.

The scan is our own, over the modules of transformers. Theirs does not restart at `is_first`, does not
return the state of every position, and drops the cached state if it gets more than one token. Ours is
plain torch, linear in time, and runs on every device. The fused CUDA kernels (mamba_ssm,
causal_conv1d) return no states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmdreamer.backbones.hf_backbone import HuggingFaceBackbone

LayerCache = tuple[Tensor, Tensor]
"""The last inputs of a layer's convolution (..., channels, taps), and its SSM state (..., state)."""


class LayerScan(ABC):
    """Runs the convolution and the recurrence of one layer, over sequences or for one step."""

    cache: LayerCache
    """The layer's cache after its last token, or after each token. Set by `update_state`."""

    _conv_inputs: Tensor

    @abstractmethod
    def _last_inputs(self, signal: Tensor, count: int) -> Tensor:
        """Return the inputs that the convolution sees at each token, oldest first: (..., channels, count)."""

    @abstractmethod
    def _states(self, decay: Tensor, drive: Tensor) -> Tensor:
        """Compute state = decay * (previous state) + drive, at each token."""

    def convolve(self, signal: Tensor, conv: nn.Conv1d) -> Tensor:
        """Apply the depthwise causal convolution: (..., channels) -> (..., channels)."""
        weight = conv.weight.squeeze(1)
        self._conv_inputs = self._last_inputs(signal, weight.shape[-1])
        mixed = (self._conv_inputs * weight).sum(-1)
        return mixed if conv.bias is None else mixed + conv.bias

    def update_state(self, decay: Tensor, drive: Tensor) -> Tensor:
        """Return the SSM state after each token, (..., *state); `decay` is broadcast to it.

        Call `convolve` first.
        """
        states = self._states(decay, drive)
        self.cache = (self._conv_inputs.detach(), states.detach())
        return states


class SequenceScan(LayerScan):
    """Scan of whole sequences (B, T, ...) from an empty cache, emptied again at each `is_first`."""

    def __init__(self, is_first: Tensor) -> None:
        self.is_first = is_first
        time = torch.arange(is_first.shape[1], device=is_first.device)
        # Steps since the start of the episode.
        self.age = time - torch.where(is_first, time, 0).cummax(1).values

    def _last_inputs(self, signal: Tensor, count: int) -> Tensor:
        inputs = F.pad(signal, (0, 0, count - 1, 0)).unfold(1, count, 1)
        lag = torch.arange(count - 1, -1, -1, device=signal.device)
        return inputs * (lag <= self.age.unsqueeze(-1)).unsqueeze(2)

    def _states(self, decay: Tensor, drive: Tensor) -> Tensor:
        keep = (~self.is_first).to(decay.dtype)
        decay = decay * keep.view(*keep.shape, *[1] * (decay.ndim - 2))
        states: list[Tensor] = []
        # Unbind once: indexing the whole tensor at each step costs a copy of its size in the
        # backward pass.
        for kept, added in zip(decay.unbind(1), drive.unbind(1), strict=True):
            states.append(torch.addcmul(added, kept, states[-1]) if states else added)
        return torch.stack(states, 1)


class StepScan(LayerScan):
    """One token of N streams (N, ...), starting from a cache. None is the empty cache."""

    def __init__(self, cache: LayerCache | None) -> None:
        self.previous = cache

    def _last_inputs(self, signal: Tensor, count: int) -> Tensor:
        if self.previous is None:
            return F.pad(signal.unsqueeze(-1), (count - 1, 0))
        return torch.cat([self.previous[0][..., 1:], signal.unsqueeze(-1)], -1)

    def _states(self, decay: Tensor, drive: Tensor) -> Tensor:
        return drive if self.previous is None else torch.addcmul(drive, decay, self.previous[1])


Mixer = Callable[[Any, Tensor, LayerScan], Tensor]
"""Runs a family's mixer: its transformers module, the input (..., D), and the scan to use."""


class StateSpaceBackbone(HuggingFaceBackbone):
    """Layers of (RMSNorm, mixer, residual). The cache has a fixed size and no limit in time.

    `hf_model.seq_len` does not limit it: to forget older tokens, every window would have to be encoded
    again, which these models are made to avoid.

    The cache is a list of `LayerCache`, empty before the first token. The caches of `observe` are the
    same list with leading dimensions (B, T).
    """

    # Not `observe`: its loop over time would become one long graph.
    compiles = frozenset({"step"})

    def __init__(self, model: PreTrainedModel, mixer: Mixer, input_rms: float) -> None:
        super().__init__(model, input_rms)
        self.mixer = mixer

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, list[LayerCache]]:
        return self._run(tokens, [SequenceScan(is_first) for _ in self._layers()])

    def select(
        self, caches: list[LayerCache], indices: Tensor, steps: int | None = None
    ) -> list[LayerCache]:
        batch = torch.arange(indices.shape[0], device=indices.device).unsqueeze(1)
        # Contiguous, as `step` returns it: another layout would compile `step` a second time.
        return [
            (
                conv_inputs[batch, indices].flatten(0, 1).contiguous(),
                state[batch, indices].flatten(0, 1),
            )
            for conv_inputs, state in caches
        ]

    def initial_cache(self, streams: int) -> list[LayerCache]:
        return []

    @torch.no_grad()
    def step(self, token: Tensor, cache: list[LayerCache]) -> tuple[Tensor, list[LayerCache]]:
        layers: list[LayerCache | None] = [*cache] or [None] * len(self._layers())
        return self._run(token, [StepScan(layer) for layer in layers])

    def reset(self, cache: list[LayerCache], mask: Tensor) -> list[LayerCache]:
        def clear(tensor: Tensor) -> Tensor:
            return tensor.masked_fill(mask.view(-1, *[1] * (tensor.ndim - 1)), 0.0)

        return [(clear(conv_inputs), clear(state)) for conv_inputs, state in cache]

    def replace(
        self, cache: list[LayerCache], other: list[LayerCache], mask: Tensor
    ) -> list[LayerCache]:
        def merge(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)

        empty = [(torch.zeros_like(a), torch.zeros_like(b)) for a, b in cache or other]
        layers = zip(cache or empty, other or empty, strict=True)
        return [(merge(a, c), merge(b, d)) for (a, b), (c, d) in layers]

    def cache_to_dict(self, cache: list[LayerCache]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for index, (conv_inputs, state) in enumerate(cache):
            tensors |= {f"conv_inputs.{index}": conv_inputs, f"ssm_state.{index}": state}
        return tensors

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> list[LayerCache]:
        count = sum(name.startswith("conv_inputs.") for name in tensors)
        return [(tensors[f"conv_inputs.{i}"], tensors[f"ssm_state.{i}"]) for i in range(count)]

    def _layers(self) -> nn.ModuleList:
        return cast("nn.ModuleList", self.model.layers)

    def _run(self, hidden: Tensor, scans: Sequence[LayerScan]) -> tuple[Tensor, list[LayerCache]]:
        layers: Iterable[Any] = self._layers()
        for layer, scan in zip(layers, scans, strict=True):
            residual = hidden.float() if layer.residual_in_fp32 else hidden
            hidden = residual + self.mixer(layer.mixer, layer.norm(hidden), scan)
        deter: Tensor = cast("nn.Module", self.model.norm_f)(hidden)
        return deter, [scan.cache for scan in scans]
