"""Students' answers compared by a judge model: contests, verdicts, scores."""
