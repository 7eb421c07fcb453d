"""Sweeps: many runs of one command, their identity, order and record."""
