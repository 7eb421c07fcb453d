"""Actor and critic, trained on imagined trajectories."""
