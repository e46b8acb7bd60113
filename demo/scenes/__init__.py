"""Emoji scenes: sprites, layout, pictures and videos."""
