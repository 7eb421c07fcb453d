"""Vectors of Gymnasium environments, with observations and actions as in `llmdreamer.types`."""

from llmdreamer.envs.factory import make_vector
from llmdreamer.envs.vector import EnvError, VectorEnv, VectorOptions

__all__ = ["EnvError", "VectorEnv", "VectorOptions", "make_vector"]
