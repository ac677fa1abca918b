"""A small world whose oracle knows every right answer: a teacher, students, results."""
