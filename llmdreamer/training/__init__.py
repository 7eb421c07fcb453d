"""Composes the stages into one agent that learns."""
