"""Offline work: data → weights → artefacts → a deployable repository."""
