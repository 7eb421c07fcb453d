"""Policies exported from a run as data files."""
