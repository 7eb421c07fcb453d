"""Make the environments that a configuration names, or say in one line why not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

from llmdreamer.envs.simulator import Frames
from llmdreamer.envs.vector import VectorEnv, VectorOptions
from llmdreamer.envs.wrappers import ActionRepeat
from llmdreamer.utils.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig


@dataclass(frozen=True)
class Suite:
    """Environments that need a package of their own, told by how their ids begin.

    `module` has a function `make(cfg, render)` for what gymnasium's registry does not do; None where
    that does all.
    """

    name: str  # of the option in conf/env, and of the extra
    prefixes: tuple[str, ...]
    package: str
    imported: tuple[str, ...]  # modules whose absence means that the package is not installed
    module: str | None


SUITES = (
    Suite("dmc", ("dmc:",), "dm_control", ("dm_control", "dm_env"), "llmdreamer.envs.dmc"),
    Suite(
        "minigrid", ("MiniGrid-", "BabyAI-"), "minigrid", ("minigrid",), "llmdreamer.envs.minigrid"
    ),
    Suite("atari", ("ALE/",), "ale_py", ("ale_py",), "llmdreamer.envs.atari"),
    Suite("mujoco", (), "mujoco", ("mujoco", "imageio"), None),
)


def make_vector(cfg: EnvConfig, num_envs: int, seed: int, render: bool = False) -> VectorEnv:
    """Return `num_envs` environments `cfg.id`: a suite's, a gymnasium id or `module:Name-v0`.

    Args:
        cfg: what to make; `cfg.num_envs` is not read, evaluation may want another number.
        seed: of the first reset of each, see `VectorEnv`.
        render: make pictures available from `VectorEnv.render`.

    Raises:
        ConfigError: if there is no such environment, its package is not installed, it refuses
            `cfg.kwargs`, or its spaces are of an unsupported kind.
    """
    if cfg.max_episode_steps is not None and cfg.max_episode_steps < 1:
        raise ConfigError(f"env.max_episode_steps={cfg.max_episode_steps}: must be >= 1 or null")
    options = VectorOptions(
        frames_of(cfg),
        cfg.action_repeat,
        cfg.processes,
        cfg.max_restarts,
        cfg.timeout,
    )
    return VectorEnv([partial(make_env, cfg, render)] * num_envs, seed, options)


def frames_of(cfg: EnvConfig) -> Frames:
    """How the observations of `cfg.id` are translated."""
    return Frames(cfg.image_size, cfg.max_text_bytes, cfg.vector_scale)


def make_env(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    """Return one environment, each of whose steps is a policy step.

    Raises:
        ConfigError: as `make_vector`.
    """
    suite = next((one for one in SUITES if cfg.id.startswith(one.prefixes or "\0")), None)
    try:
        if suite is not None and suite.module is not None:
            made: gym.Env[Any, Any] = import_module(suite.module).make(cfg, render)
            return made
        return _repeated(make_registered(cfg, render), cfg)
    except ConfigError:
        raise
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ConfigError(f"env.id={cfg.id}: no such environment{_hint(cfg.id)}") from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise ConfigError(_missing(cfg, error)) from error
    except Exception as error:  # an environment is a stranger's code and may raise anything
        cause = f"{type(error).__name__}: {_one_line(error)}"
        raise ConfigError(f"env.id={cfg.id} env.kwargs={dict(cfg.kwargs)}: {cause}") from error


def make_registered(cfg: EnvConfig, render: bool, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return an environment of gymnasium's registry, with its `TimeLimit`, without action repeat."""
    kwargs |= cfg.kwargs
    if render:
        kwargs["render_mode"] = "rgb_array"
    if cfg.max_episode_steps is not None:
        kwargs["max_episode_steps"] = cfg.max_episode_steps
    # The simulator makes its own checks; gymnasium's would only print.
    return gym.make(cfg.id, disable_env_checker=True, **kwargs)


def _repeated(env: gym.Env[Any, Any], cfg: EnvConfig) -> gym.Env[Any, Any]:
    return ActionRepeat(env, cfg.action_repeat) if cfg.action_repeat > 1 else env


def _missing(cfg: EnvConfig, error: Exception) -> str:
    """Say which package is not installed, and how to get it."""
    # Gymnasium raises again without the name.
    names = (getattr(link, "name", None) for link in (error, error.__cause__, error.__context__))
    name = next((str(one).partition(".")[0] for one in names if one), None)
    for suite in SUITES:
        if name in suite.imported:
            return f"env={suite.name} needs {suite.package}: pip install 'llmdreamer[{suite.name}]'"
    if isinstance(error, gym.error.DependencyNotInstalled):
        return f"env.id={cfg.id}: {_one_line(error)}"
    what = f"install the package of '{name}'" if name else _one_line(error)
    return f"env.id={cfg.id}: cannot be imported; {what}"


def _hint(env_id: str) -> str:
    name = env_id.rpartition(":")[2]
    namespace, stem, _ = parse_env_id(name)
    if namespace and not any(spec.namespace == namespace for spec in gym.registry.values()):
        return f"; is the package of '{namespace}' installed, and imported (module:{name})?"
    version = find_highest_version(namespace, stem)
    if version is not None:
        return f"; did you mean '{get_env_id(namespace, stem, version)}'?"
    return did_you_mean(name, gym.registry)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
