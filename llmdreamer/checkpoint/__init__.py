"""Checkpoints: the files on disk, and the thread that writes them beside training."""
