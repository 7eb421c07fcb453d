"""Launchers: where the process of a run is started (local, Slurm, Ray)."""
