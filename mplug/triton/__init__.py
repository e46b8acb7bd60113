"""The adapter between Triton's Python backend and the rest of `mplug`, which knows no Triton."""
