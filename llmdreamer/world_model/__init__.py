"""The latent world model: training on replayed sequences, and imagination."""
