"""The report of a run, or of several students: one HTML file with scores, figures and texts."""

NAME = "report.html"
