"""The command `collect`: a teacher's responses to prompts; files of them checked and prepared."""
