"""Evaluation of every task: metrics, models asked through PyTorch or through a server, and tables."""
