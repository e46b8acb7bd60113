"""Real data sets, in the layouts in which the published scripts read them."""
