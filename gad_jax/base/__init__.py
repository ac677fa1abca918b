"""What every part may use and that needs no jax: errors, exits, files, the console, the cache."""
