"""Bytes and text to arrays: images, videos, tokens."""
