"""A backbone, an environment and a variant of the algorithm for llmdreamer, from outside of it."""
