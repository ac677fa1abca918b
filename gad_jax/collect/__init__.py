"""Collecting a teacher's responses: what is asked, what it may cost, how it is asked and kept."""
