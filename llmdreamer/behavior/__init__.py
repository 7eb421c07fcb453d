"""Actor and critic, and the imagination that they are trained on."""
