"""The agent, its collection of experience, and its restoration from a checkpoint."""
