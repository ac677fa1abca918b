"""Further terms of the generator's reward: rules, and functions of a user's own file."""
