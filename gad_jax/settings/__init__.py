"""What a user can set: a run's fields and their checks, config files, flags. Imports no jax."""
