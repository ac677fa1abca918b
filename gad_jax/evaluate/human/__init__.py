"""Blind votes of people on pairs of answers: pairs, votes, the page, and the results."""
