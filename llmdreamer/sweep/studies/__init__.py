"""Optuna studies: search space, samplers, storage and results."""
