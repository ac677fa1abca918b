"""The command `evaluate`: answers of students to prompt sets, and how they compare."""
