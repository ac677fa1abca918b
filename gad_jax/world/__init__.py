"""A small world whose oracle knows every right answer: its language, its methods, its results."""
