"""The Gaussian-mixture experiment of the paper (section 4)."""
