"""Benchmarks. Each compares with a ceiling or another engine that is measured in the same run."""
