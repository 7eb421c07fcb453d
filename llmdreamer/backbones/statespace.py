"""State-space models (the Mamba family) as a backbone: a scan over whole sequences, and one step of it.

The scan is ours, over the modules of transformers: theirs neither restarts at `is_first` nor returns
the states of every position, and its cache loses them on more than one token. It is plain torch,
linear in time, on every device; the fused CUDA kernels (mamba_ssm, causal_conv1d) return no states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmdreamer.backbones.base import Backbone

LayerState = tuple[Tensor, Tensor]
"""A layer's last inputs to its convolution (..., channels, taps), and its memory (..., state)."""


class Pass(ABC):
    """How a layer's two kinds of memory are run: along sequences, or one step on from a cache."""

    cache: LayerState
    """What the layer remembers after its last token, or after each; there once it has run."""

    _taps: Tensor

    @abstractmethod
    def _last_inputs(self, signal: Tensor, count: int) -> Tensor:
        """The inputs that the convolution sees at each token, oldest first: (..., channels, count)."""

    @abstractmethod
    def _memories(self, decay: Tensor, drive: Tensor) -> Tensor:
        """memory = decay * (memory before) + drive, at each token."""

    def convolve(self, signal: Tensor, conv: nn.Conv1d) -> Tensor:
        """The depthwise causal convolution: (..., channels) -> (..., channels)."""
        weight = conv.weight.squeeze(1)
        self._taps = self._last_inputs(signal, weight.shape[-1])
        mixed = (self._taps * weight).sum(-1)
        return mixed if conv.bias is None else mixed + conv.bias

    def remember(self, decay: Tensor, drive: Tensor) -> Tensor:
        """The memory after each token, (..., *state); `decay` may be of broadcast shape."""
        memories = self._memories(decay, drive)
        self.state = (self._taps.detach(), memories.detach())
        return memories


class Along(Pass):
    """Whole sequences (B, T, ...) from an empty memory, emptied again at each `is_first`."""

    def __init__(self, is_first: Tensor) -> None:
        self.is_first = is_first
        row = torch.arange(is_first.shape[1], device=is_first.device)
        self.age = row - torch.where(is_first, row, 0).cummax(1).values  # steps since the start

    def _last_inputs(self, signal: Tensor, count: int) -> Tensor:
        taps = F.pad(signal, (0, 0, count - 1, 0)).unfold(1, count, 1)
        lag = torch.arange(count - 1, -1, -1, device=signal.device)
        return taps * (lag <= self.age.unsqueeze(-1)).unsqueeze(2)

    def _memories(self, decay: Tensor, drive: Tensor) -> Tensor:
        keep = (~self.is_first).to(decay.dtype)
        decay = decay * keep.view(*keep.shape, *[1] * (decay.ndim - 2))
        memories: list[Tensor] = []
        # Slices are unbound once: indexing the whole tensor at each step costs a copy of its size
        # in the backward pass.
        for kept, added in zip(decay.unbind(1), drive.unbind(1), strict=True):
            memories.append(torch.addcmul(added, kept, memories[-1]) if memories else added)
        return torch.stack(memories, 1)


class Step(Pass):
    """One token of N streams (N, ...), on from a cache; None is the empty memory."""

    def __init__(self, cache: LayerState | None) -> None:
        self.before = cache

    def _last_inputs(self, signal: Tensor, count: int) -> Tensor:
        if self.before is None:
            return F.pad(signal.unsqueeze(-1), (count - 1, 0))
        return torch.cat([self.before[0][..., 1:], signal.unsqueeze(-1)], -1)

    def _memories(self, decay: Tensor, drive: Tensor) -> Tensor:
        return drive if self.before is None else torch.addcmul(drive, decay, self.before[1])


Mix = Callable[[Any, Tensor, Pass], Tensor]
"""A family's mixer: its module of transformers, its input (..., D), and how to run its memories."""


class StateSpaceBackbone(Backbone):
    """Layers of (RMSNorm, mixer, residual); the memory is of fixed size and reaches back without end.

    So `hf_model.seq_len` does not bound it: cutting it to a window would mean encoding every window
    anew, which is what these models are made to avoid.

    Its cache is a list of `LayerState`, empty before the first token; of `observe`, with a row for
    each (b, t).
    """

    # Not `observe`: the loop over time would be one long graph.
    compiles = frozenset({"step"})

    def __init__(self, model: PreTrainedModel, mix: Mix, input_rms: float) -> None:
        super().__init__()
        self.model = model
        self.mix = mix
        self.width = int(model.config.hidden_size)
        self.input_rms = input_rms

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, list[LayerState]]:
        return self._run(tokens, [Along(is_first) for _ in self._layers()])

    def select(
        self, caches: list[LayerState], indices: Tensor, steps: int | None = None
    ) -> list[LayerState]:
        row = torch.arange(indices.shape[0], device=indices.device).unsqueeze(1)
        # In the layout that `step` leaves, too: for another one it would be compiled anew.
        return [
            (taps[row, indices].flatten(0, 1).contiguous(), memory[row, indices].flatten(0, 1))
            for taps, memory in caches
        ]

    def initial_cache(self, streams: int) -> list[LayerState]:
        return []

    @torch.no_grad()
    def step(self, token: Tensor, cache: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        layers: list[LayerState | None] = [*cache] or [None] * len(self._layers())
        return self._run(token, [Step(layer) for layer in layers])

    def reset(self, cache: list[LayerState], mask: Tensor) -> list[LayerState]:
        def emptied(part: Tensor) -> Tensor:
            return part.masked_fill(mask.view(-1, *[1] * (part.ndim - 1)), 0.0)

        return [(emptied(taps), emptied(memory)) for taps, memory in cache]

    def replace(
        self, cache: list[LayerState], other: list[LayerState], mask: Tensor
    ) -> list[LayerState]:
        def chosen(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)

        nothing = [(torch.zeros_like(a), torch.zeros_like(b)) for a, b in cache or other]
        layers = zip(cache or nothing, other or nothing, strict=True)
        return [(chosen(a, c), chosen(b, d)) for (a, b), (c, d) in layers]

    def cache_to_dict(self, cache: list[LayerState]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for index, (taps, memory) in enumerate(cache):
            tensors |= {f"taps.{index}": taps, f"memory.{index}": memory}
        return tensors

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> list[LayerState]:
        count = sum(name.startswith("taps.") for name in tensors)
        return [(tensors[f"taps.{i}"], tensors[f"memory.{i}"]) for i in range(count)]

    def _layers(self) -> nn.ModuleList:
        return cast("nn.ModuleList", self.model.layers)

    def _run(self, hidden: Tensor, passes: Sequence[Pass]) -> tuple[Tensor, list[LayerState]]:
        layers: Iterable[Any] = self._layers()
        for layer, one in zip(layers, passes, strict=True):
            residual = hidden.float() if layer.residual_in_fp32 else hidden
            hidden = residual + self.mix(layer.mixer, layer.norm(hidden), one)
        deter: Tensor = cast("nn.Module", self.model.norm_f)(hidden)
        return deter, [one.state for one in passes]
