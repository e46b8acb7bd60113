"""mPLUG (arXiv 2205.12005) served by Triton: network, search, preprocessing, runtimes and tasks."""
