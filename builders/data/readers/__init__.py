"""Real data sets, in the layouts in which the published scripts read them: a module each, with `read` and `Source`."""
