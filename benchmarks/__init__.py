"""Ours beside its baselines, in one run: see docs/benchmarks.md."""
