"""Further terms of the generator's reward: rules, functions of a file, reward models, a judge."""
