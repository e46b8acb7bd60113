"""Beam search and the loop that runs many searches at once; knows no Triton."""
