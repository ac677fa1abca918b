"""A judge that compares two answers: what it is asked, and how its verdict is read."""
