"""What a run needs on hardware you do not have, found by ahead-of-time compilation."""
