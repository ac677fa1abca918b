"""A student's answers: to one prompt, to a file of prompts, or typed at a prompt line."""
