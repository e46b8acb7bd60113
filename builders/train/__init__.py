"""Training of mPLUG: objectives, one file each, and the loop that runs them."""
