"""Experiment trackers that a run reports to: W&B, MLflow, trackio. Each is imported when used."""
