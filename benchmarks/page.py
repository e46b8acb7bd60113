"""Sections of a Markdown page that a measurement rewrites: between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

from pathlib import Path


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section's text. Raises ValueError when the page has no such section."""
    before, opening, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        raise ValueError(f"{page} has no section between <!-- {name} --> and <!-- /{name} -->")
    page.write_text(f"{before}{opening}\n{text}\n\n{closing}{after}")
