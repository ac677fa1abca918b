"""What the prompt sets of these tests ask and answer."""

QUESTIONS = ("Name a fruit.", "Say hello to Anna.", "What is 2 + 2?")
TEACHER = "An apple, I say."
