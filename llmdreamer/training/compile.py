"""What `compile=true` compiles of an update, by torch.compile, and what it needs for that."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

import torch

from llmdreamer.behavior.imagine import dream_on
from llmdreamer.types import Code
from llmdreamer.utils import distributed
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from llmdreamer.agent.agent import Agent
    from llmdreamer.backbones import Cache

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Piece(Generic[Arguments, Result]):
    """A function of tensors, and if it is to be compiled, its compiled form, made by its first call."""

    def __init__(self, plain: Callable[Arguments, Result], compiled: bool) -> None:
        self.plain = plain
        # One graph, or an error: a break would cost unseen what compiling gains. Shapes are those of the
        # configuration, so none is left open. Draws are torch's own, so that a seed gives the same ones
        # compiled or not, and the state of torch's generator in a checkpoint says all.
        self.compiled = (
            torch.compile(plain, fullgraph=True, dynamic=False, options={"fallback_random": True})
            if compiled
            else plain
        )
        self.eagerly = False

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        call = self.plain if self.eagerly else self.compiled
        return call(*args, **kwargs)


class Pieces:
    """The parts of an update that are functions of tensors, as they are or, with `compile=true`, compiled.

    - `dream`: a step of imagination, with the action before it, where the backbone's `step` compiles;
    - `row`: of a coupled posterior, one row of the world model's pass, there too;
    - `observe`: the world model's pass over a batch and its loss, where the backbone's `observe` compiles and
      no text is read;
    - `judge` and `judge_replay`: the losses of actor and critic, with any backbone.

    All with their way back, where they have one. What is left as it is: choosing where dreams begin, the
    optimiser, whose list operations are 3% of an update, acting and evaluation, whose rows are few and whose
    number changes.
    """

    def __init__(self, agent: Agent, compiled: bool) -> None:
        world_model, behavior = agent.world_model, agent.behavior

        def dream(latent: Code, state: Cache) -> tuple[Tensor, Code, Cache]:
            return dream_on(world_model, behavior.sample, latent, state)

        steps = "step" in world_model.backbone.compiles
        self.dream = Piece(dream, compiled and steps)
        self.row = Piece(world_model.row, compiled and steps and world_model.coupled)
        self.observe = Piece(world_model.observe, compiled and world_model.compiles)
        self.judge = Piece(behavior.loss, compiled)
        self.judge_replay = Piece(behavior.replay_loss, compiled)
        self.seconds: float | None = None
        """What the first compiled update took, nearly all of it compiling; None before it."""
        self._waiting = compiled

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """While it lasts nothing runs compiled: so operations can be counted, and modules watched."""
        pieces = (self.dream, self.row, self.observe, self.judge, self.judge_replay)
        waiting, self._waiting = self._waiting, False
        for piece in pieces:
            piece.eagerly = True
        try:
            yield
        finally:
            self._waiting = waiting
            for piece in pieces:
                piece.eagerly = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around an update: what the first compiled one took.

        Raises:
            ConfigError: if it cannot be compiled.
        """
        if not self._waiting:
            yield
            return
        # Part of torch that takes a second to import, and is imported by compiling anyway.
        from torch._dynamo.exc import TorchDynamoException

        begin = time.perf_counter()
        try:
            yield
        except TorchDynamoException as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"compile=true: torch cannot compile this update ({reason}); compile=false does without"
            ) from error
        self.seconds = time.perf_counter() - begin
        self._waiting = False


def check_compiler(device: torch.device) -> None:
    """See that there is what torch.compile compiles with, before anything is made.

    Raises:
        ConfigError: if there is not, or there are several processes.
    """
    if distributed.size() > 1:
        raise ConfigError(
            f"compile=true: {distributed.size()} processes of one run cannot be compiled; set compile=false"
        )
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ConfigError(
                "compile=true: no Triton, which torch compiles with for CUDA: pip install triton"
            )
    elif shutil.which(compiler()) is None:
        raise ConfigError(
            f"compile=true: no C++ compiler ({compiler()}): install one, name it in CXX,"
            " or set compile=false"
        )


def compiler() -> str:
    """The C++ compiler that torch will take on a CPU."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX", usual)
