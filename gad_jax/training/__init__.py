"""A run: its loop, its state and checkpoints, its alarms, its metrics."""
