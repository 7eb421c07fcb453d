"""The agent, its steps in the environments, and its restoration from a run's folder."""
