"""Training of the demo checkpoint."""
