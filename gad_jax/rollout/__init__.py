"""Sampling responses from a network: the distribution, and the compiled loop."""
