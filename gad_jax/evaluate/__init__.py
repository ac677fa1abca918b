"""How good a student's answers are: its greedy answers to held-out prompts, and their overlap with
the teacher's."""
