"""What is measured of answers: overlap, held-out evaluation, intervals."""
