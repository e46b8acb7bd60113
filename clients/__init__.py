"""Command lines and a small importable client for a served mPLUG: tritonclient, NumPy and Pillow only."""
