"""A run's networks as Hugging Face directories."""
