"""Make the environments that a configuration names, or say in one line why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

from llmdreamer.envs.vector import VectorEnv
from llmdreamer.envs.wrappers import ActionRepeat
from llmdreamer.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig


def make_vector(cfg: EnvConfig, num_envs: int, seed: int, render: bool = False) -> VectorEnv:
    """Return `num_envs` environments `cfg.id`, a gymnasium id or `module:Name-v0`.

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
    envs: list[gym.Env[Any, Any]] = []
    try:
        for _ in range(num_envs):
            envs.append(_make(cfg, render))
        return VectorEnv(envs, seed, cfg.action_repeat)
    except ConfigError:
        for env in envs:
            env.close()
        raise


def _make(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    kwargs: dict[str, Any] = dict(cfg.kwargs)
    if render:
        kwargs["render_mode"] = "rgb_array"
    if cfg.max_episode_steps is not None:
        kwargs["max_episode_steps"] = cfg.max_episode_steps
    try:
        # VectorEnv makes its own checks; gymnasium's would only print.
        env = gym.make(cfg.id, disable_env_checker=True, **kwargs)
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ConfigError(f"env.id={cfg.id}: no such environment{_hint(cfg.id)}") from error
    except gym.error.DependencyNotInstalled as error:
        raise ConfigError(f"env.id={cfg.id}: {_one_line(error)}") from error
    except ImportError as error:
        # Gymnasium raises again without the name.
        name = error.name or getattr(error.__cause__, "name", None)
        what = f"install the package of '{name}'" if name else _one_line(error)
        raise ConfigError(f"env.id={cfg.id}: cannot be imported; {what}") from error
    except Exception as error:  # an environment is a stranger's code and may raise anything
        cause = f"{type(error).__name__}: {_one_line(error)}"
        raise ConfigError(f"env.id={cfg.id} env.kwargs={kwargs}: {cause}") from error
    return ActionRepeat(env, cfg.action_repeat) if cfg.action_repeat > 1 else env


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
