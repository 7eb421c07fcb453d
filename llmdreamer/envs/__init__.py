"""Environments: a vector of gymnasium's, seen as the rows and actions of `llmdreamer.types`."""

from llmdreamer.envs.factory import make_vector
from llmdreamer.envs.vector import EnvError, VectorEnv, VectorOptions

__all__ = ["EnvError", "VectorEnv", "VectorOptions", "make_vector"]
