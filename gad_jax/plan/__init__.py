"""What a run will need on hardware that is not here, found by compiling it."""
