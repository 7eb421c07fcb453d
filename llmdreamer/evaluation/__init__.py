"""Evaluation of a policy over episodes and of a world model without observations."""
