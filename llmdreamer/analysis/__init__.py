"""Loads recorded runs and turns them into statistics and figures, for the notebooks and the report."""
