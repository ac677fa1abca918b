"""Models that need no download of a directory: SmolLM2 from its package, and random ones."""
