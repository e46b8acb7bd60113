"""Between Triton's Python backend and logic that knows no Triton."""
