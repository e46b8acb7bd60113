"""One measurement each, with its baselines in the same run."""
