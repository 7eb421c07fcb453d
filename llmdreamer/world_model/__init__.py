"""The latent world model: what it learns from replayed sequences, and how it dreams on."""
