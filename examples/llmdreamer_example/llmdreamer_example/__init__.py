"""A separate package that adds a backbone, an environment and an algorithm variant to llmdreamer."""
