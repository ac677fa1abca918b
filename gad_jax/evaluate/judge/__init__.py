"""Students' answers rated by a judge model: the questions, the verdicts, what that adds up to."""
