"""The interface between the world model and a sequence model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

Cache = Any
"""What a backbone carries between steps of N streams. Only the backbone itself looks inside."""


class Backbone(nn.Module, ABC):
    """A causal sequence model over tokens of D numbers each. It restarts where `is_first` is true.

    Laws, tested for every implementation by `llmdreamer.testing.backbone_laws`:

    - A packed sequence with resets gives the same outputs as each of its episodes alone.
    - `observe` gives the same outputs as `step`, token by token.
    - `step` from `select(caches, (b, t))` gives the same outputs as encoding tokens 0..t of sequence b.
    - A stream that `replace` takes from another cache continues as it would have there.
    """

    width: int
    """D: the size of a token, and of the `deter` computed from it."""

    input_rms: float
    """Root mean square of the tokens that the model expects."""

    vocabulary: Tensor | None = None
    """Word embeddings (words, width) of a pretrained model, set if texts are read with them.

    They are not part of the state dict.
    """

    compiles: ClassVar[frozenset[Literal["observe", "step"]]] = frozenset()
    """Methods that torch.compile turns into one graph: their operations must not depend on tensor values."""

    uses_rssm_input: bool = False
    """True if z, action and `deter` are used as in DreamerV3: see `TokenProjection` and `WorldModel`."""

    plans_on_cpu: ClassVar[bool] = False
    """True if the sizes in `observe` depend on `is_first`: on the CPU, it is read without waiting."""

    recurrent: bool = False
    """True if `step` carries gradient and `stack` works, so that sequences can be observed in a loop."""

    @abstractmethod
    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Cache]:
        """Encode whole sequences in one pass.

        Args:
            tokens: (B, T, D).
            is_first: (B, T), bool. The cache is emptied before such a token, and before token 0.

        Returns:
            deter (B, T, D), and the caches after each of the B x T tokens, for `select`.
        """

    @abstractmethod
    def select(self, caches: Cache, indices: Tensor, steps: int | None = None) -> Cache:
        """Return the caches after token `indices[b, i]` of sequence b, for n tokens of each sequence.

        Args:
            caches: as `observe` returns them.
            indices: (B, n), int64 in [0, T).
            steps: largest number of steps that will follow; None: unknown. With a number, the backbone
                may return a cache that supports `step` alone, and only that many times.

        Returns:
            The cache of N = B * n streams, the n of each sequence side by side, without gradient.
        """

    @abstractmethod
    def initial_cache(self, streams: int) -> Cache:
        """Return an empty cache of that many streams."""

    @abstractmethod
    def step(self, token: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Encode one more token (N, D) of each stream. Return deter (N, D) and the new cache.

        Without gradient, unless the backbone is `recurrent`.

        The given cache may be overwritten: use only the returned one.
        """

    def merged(self) -> AbstractContextManager[None]:
        """Merge LoRA adapters into their weights for the duration, so that they cost nothing.

        For passes without gradient.
        """
        if not any(".lora_" in name for name, _ in self.named_parameters()):
            return nullcontext()
        # peft takes seconds to import; if there are adapters, it is imported already.
        from llmdreamer.backbones.lora import merged

        return merged(self)

    def stack(self, caches: list[Cache]) -> Cache:
        """Join the caches after each of T steps of B streams, as `observe` would return them."""
        raise NotImplementedError(f"{type(self).__name__} is not recurrent")

    @abstractmethod
    def reset(self, cache: Cache, mask: Tensor) -> Cache:
        """Empty the cache of the streams in `mask` (N,)."""

    @abstractmethod
    def replace(self, cache: Cache, other: Cache, mask: Tensor) -> Cache:
        """Take the streams in `mask` (N,) from `other`, which also has N streams.

        Both given caches may be overwritten.
        """

    @abstractmethod
    def cache_to_dict(self, cache: Cache) -> dict[str, Tensor]:
        """Return the cache as plain tensors, for a checkpoint."""

    @abstractmethod
    def cache_from_dict(self, tensors: dict[str, Tensor]) -> Cache:
        """Invert `cache_to_dict`."""
