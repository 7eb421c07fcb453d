"""Installs torch.compile on an agent (`compile=true`), and checks that it can run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmdreamer.utils import distributed
from llmdreamer.utils.errors import ConfigError, first_line

if TYPE_CHECKING:
    from llmdreamer.agent.agent import Agent
    from llmdreamer.world_model.model import WorldModel


def compile_agent(agent: Agent) -> None:
    """Replace the large tensor functions of an update by their compiled forms.

    - `WorldModel.loss`, if the backbone's `observe` compiles and no text is read;
    - `WorldModel.observe_step` of a coupled posterior, and `WorldModel.imagine_step`, if its `step` compiles;
    - `Behavior.imagination_loss` and `Behavior.replay_loss`, with any backbone.

    Forward and backward passes are compiled. Left out are the sampling of start states, the optimizer (its
    list operations take 3% of an update), acting and evaluation (their batches are small and vary in size).
    """
    world_model, behavior = agent.world_model, agent.behavior
    if world_model.loss_compiles:
        _compile(world_model, "loss")
    if "step" in world_model.backbone.compiles:
        _compile(world_model, "imagine_step")
        if world_model.coupled:
            _compile_observe_step(world_model)
    _compile(behavior, "imagination_loss")
    _compile(behavior, "replay_loss")


def _compile(module: nn.Module, name: str) -> None:
    """Replace a method of one module by its compiled form. The first call compiles it."""
    # fullgraph: a graph break is an error, because it would cost what compiling gains. dynamic: all shapes
    # are fixed by the configuration. fallback_random: torch's own generator is used, so that a seed gives
    # the same numbers compiled or not, and a checkpoint of the generator's state is complete.
    compiled = torch.compile(
        getattr(module, name), fullgraph=True, dynamic=False, options={"fallback_random": True}
    )
    setattr(module, name, compiled)


def _compile_observe_step(world_model: WorldModel) -> None:
    """Compile `observe_step` for all time steps but the first.

    The cache before the first one has no gradient, which would need a second graph. Evaluation computes no
    gradient either, so it also runs the plain method.
    """
    plain, to_dict = world_model.observe_step, world_model.backbone.cache_to_dict
    _compile(world_model, "observe_step")
    compiled: Callable[..., Any] = world_model.observe_step

    @wraps(plain)
    def observe_step(*args: Any) -> Any:
        has_gradient = any(tensor.requires_grad for tensor in to_dict(args[-1]).values())
        return compiled(*args) if has_gradient else plain(*args)

    setattr(world_model, "observe_step", observe_step)  # noqa: B010, mypy refuses an assignment


def uncompiled(enabled: bool) -> AbstractContextManager[Any]:
    """Run compiled functions uncompiled while the context is open, so that hooks see operations and modules.

    Args:
        enabled: False if nothing is compiled; then torch.compile, which takes seconds to import, is not
            imported.
    """
    return torch.compiler.set_stance("force_eager") if enabled else nullcontext()


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turn the errors of torch.compile into one line.

    Raises:
        ConfigError: with torch's reason.
    """
    # The import takes a second, but compiling needs it anyway.
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = first_line(error)
        raise ConfigError(
            f"compile=true: torch cannot compile this update ({reason}); choose compile=false"
        ) from error


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile can run on a device, before anything is built.

    Raises:
        ConfigError: if it finds no compiler, or the run has several processes.
    """
    if distributed.size() > 1:
        raise ConfigError(
            f"compile=true: a run of {distributed.size()} processes cannot be compiled; set"
            " compile=false"
        )
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ConfigError(
                "compile=true: torch.compile needs Triton for CUDA: run pip install triton"
            )
    elif shutil.which(compiler()) is None:
        raise ConfigError(
            f"compile=true: no C++ compiler ({compiler()}): install one, name it in CXX,"
            " or set compile=false"
        )


def compiler() -> str:
    """Return the C++ compiler that torch uses on a CPU."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX", usual)
