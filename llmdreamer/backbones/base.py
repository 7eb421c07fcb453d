"""What the world model asks of a sequence model: four operations on tokens, and nothing of its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

State = Any
"""What a backbone remembers of N streams: its own record, opaque to everyone else."""


class Backbone(nn.Module, ABC):
    """A causal sequence model over tokens (D numbers each), which restarts where `is_first` says.

    Laws, tested for every implementation by `llmdreamer.testing.backbone_laws`:

    - a packed sequence with resets gives what each of its episodes gives alone;
    - `observe` gives what `step` gives token by token;
    - `step` from `select(states, (b, t))` gives what encoding b's tokens 0..t anew would;
    - a stream that `replace` takes from another state goes on as it would have there.
    """

    width: int
    """D: numbers in a token, and in the `deter` made of it."""

    input_rms: float
    """Root mean square of the tokens that the model is used to."""

    vocabulary: Tensor | None = None
    """Word vectors (words, width) of a pretrained model, where texts are read with them; not in its state."""

    compiles: ClassVar[frozenset[Literal["observe", "step"]]] = frozenset()
    """Which of them torch.compile takes as one graph: what is done must not depend on a tensor's numbers."""

    as_dreamer: bool = False
    """Whether z, action and memory come and go as in DreamerV3: see `TokenProjection` and `WorldModel`."""

    recurrent: bool = False
    """Whether `step` carries gradient and `stack` works, so that rows can be observed in a loop."""

    @abstractmethod
    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, State]:
        """Encode whole sequences in one pass.

        Args:
            tokens: (B, T, D).
            is_first: (B, T), bool. Memory is empty before such a row, and before row 0.

        Returns:
            deter (B, T, D), and the states after each of the B x T tokens, for `select`.
        """

    @abstractmethod
    def select(self, states: State, indices: Tensor, steps: int | None = None) -> State:
        """The memory after token `indices[b, i]` of row b, for each of n tokens a row.

        Args:
            states: of `observe`.
            indices: (B, n) of int64 in [0, T).
            steps: how many will follow at most, which a backbone may make use of; None: nobody knows.
                Without a number the state can do all that is said here; with one it may be good for `step`
                alone, so often.

        Returns:
            The state of N = B * n streams, row-major, without gradient.
        """

    @abstractmethod
    def initial(self, streams: int) -> State:
        """The empty memory of that many streams."""

    @abstractmethod
    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """One token (N, D) more in each stream: deter (N, D) and the state after it.

        Without gradient, unless the backbone is `recurrent`.

        The state given is used up: it may be overwritten, and only the one returned is valid.
        """

    def merged(self) -> AbstractContextManager[None]:
        """While it lasts, passes without gradient are those of the plain model: LoRA costs them nothing."""
        if not any(".lora_" in name for name, _ in self.named_parameters()):
            return nullcontext()
        # peft takes seconds to import; where there are adapters, it is there.
        from llmdreamer.backbones.lora import merged

        return merged(self)

    def stack(self, states: list[State]) -> State:
        """The states after each of T steps of B streams, as `observe` would have left them."""
        raise NotImplementedError(f"{type(self).__name__} is not recurrent")

    @abstractmethod
    def reset(self, state: State, mask: Tensor) -> State:
        """The state with the memory of the streams in `mask` (N,) emptied."""

    @abstractmethod
    def replace(self, state: State, other: State, mask: Tensor) -> State:
        """The state with the memory of the streams in `mask` (N,) taken from `other`, of N streams too.

        Both are used up.
        """

    @abstractmethod
    def state_dict_of(self, state: State) -> dict[str, Tensor]:
        """The state as plain tensors, for a checkpoint."""

    @abstractmethod
    def state_from_dict(self, tensors: dict[str, Tensor]) -> State:
        """The inverse of `state_dict_of`."""
