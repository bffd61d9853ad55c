"""Benchmarks: one command each, everything compared in the same run on the same cores."""
