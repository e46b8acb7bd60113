"""Texts that are exactly true of a scene."""
