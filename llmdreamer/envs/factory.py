"""Make the environments of a configuration, or raise a one-line error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

from llmdreamer.envs.simulator import ObservationOptions
from llmdreamer.envs.vector import VectorEnv, VectorOptions
from llmdreamer.envs.wrappers import ActionRepeat
from llmdreamer.utils.errors import STOP_REQUESTS, ConfigError, describe_error, did_you_mean

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig


@dataclass(frozen=True)
class Suite:
    """Environments of an optional package, recognized by the prefix of their ids.

    `module` has a function `make(cfg, render)`; it is None if Gymnasium's registry makes the environments.
    """

    name: str  # of the option in conf/env, and of the extra
    prefixes: tuple[str, ...]
    package: str
    import_names: tuple[str, ...]  # if one cannot be imported, the package is not installed
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
    """Return `num_envs` environments `cfg.id`: an id of a suite, of Gymnasium, or `module:Name-v0`.

    Args:
        cfg: the environment's configuration; `cfg.num_envs` is not read, as evaluation may need
            another number.
        seed: seed of the first resets, see `VectorEnv`.
        render: enable `VectorEnv.render`.

    Raises:
        ConfigError: if there is no such environment, its package is not installed, it rejects
            `cfg.kwargs`, or its spaces are not supported.
    """
    if cfg.max_episode_steps is not None and cfg.max_episode_steps < 1:
        raise ConfigError(f"env.max_episode_steps={cfg.max_episode_steps}: must be >= 1 or null")
    options = VectorOptions(
        observation_options(cfg),
        cfg.action_repeat,
        cfg.processes,
        cfg.max_restarts,
        cfg.timeout,
    )
    return VectorEnv([partial(make_env, cfg, render)] * num_envs, seed, options)


def observation_options(cfg: EnvConfig) -> ObservationOptions:
    """Return the options for translating the observations of `cfg.id`."""
    return ObservationOptions(cfg.image_size, cfg.max_text_bytes, cfg.vector_scale)


def make_env(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    """Return one environment in which each step is a policy step.

    Raises:
        ConfigError: as in `make_vector`.
    """
    suite = next((suite for suite in SUITES if cfg.id.startswith(suite.prefixes or "\0")), None)
    try:
        if suite is not None and suite.module is not None:
            env: gym.Env[Any, Any] = import_module(suite.module).make(cfg, render)
            return env
        return repeat_actions(make_registered(cfg, render), cfg)
    except (ConfigError, *STOP_REQUESTS):
        raise
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ConfigError(f"env.id={cfg.id}: no such environment{_suggestion(cfg.id)}") from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise ConfigError(_missing_package(cfg, error)) from error
    except BaseException as error:  # third-party code may raise anything, also SystemExit
        raise ConfigError(
            f"env.id={cfg.id} env.kwargs={dict(cfg.kwargs)}: {describe_error(error)}"
        ) from error


def make_registered(cfg: EnvConfig, render: bool, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return an environment of Gymnasium's registry, with its `TimeLimit` but without action repeat."""
    kwargs |= cfg.kwargs
    if render:
        kwargs["render_mode"] = "rgb_array"
    if cfg.max_episode_steps is not None:
        kwargs["max_episode_steps"] = cfg.max_episode_steps
    # `Simulator` checks every time step; Gymnasium's checker would only print.
    return gym.make(cfg.id, disable_env_checker=True, **kwargs)


def repeat_actions(env: gym.Env[Any, Any], cfg: EnvConfig) -> gym.Env[Any, Any]:
    """Return the environment with `cfg.action_repeat`: a step is a policy step."""
    return ActionRepeat(env, cfg.action_repeat) if cfg.action_repeat > 1 else env


def _missing_package(cfg: EnvConfig, error: Exception) -> str:
    """Return a line that names the package that is not installed, and how to install it."""
    # Gymnasium re-raises the error without the module's name, so its causes are searched too.
    chain = (error, error.__cause__, error.__context__)
    modules = (getattr(cause, "name", None) for cause in chain)
    name = next((str(module).partition(".")[0] for module in modules if module), None)
    for suite in SUITES:
        if name in suite.import_names:
            return f"env={suite.name} needs {suite.package}: pip install 'llmdreamer[{suite.name}]'"
    if isinstance(error, gym.error.DependencyNotInstalled):
        return f"env.id={cfg.id}: {_one_line(error)}"
    remedy = f"install the package of '{name}'" if name else _one_line(error)
    return f"env.id={cfg.id}: cannot be imported; {remedy}"


def _suggestion(env_id: str) -> str:
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
