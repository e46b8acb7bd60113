"""The error that ends a command of `bulk` with one line."""

from __future__ import annotations


class BulkError(Exception):
    """What was wrong, with the value and the limit, and what to do; printed as it is."""
