"""Sweeps: many runs that one command starts, as a grid or as a study."""
