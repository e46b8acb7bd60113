"""How the page looks: colours that people with weak eyes can read, and the few rules that Gradio's theme lacks."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors

#: Pasted pictures, and names for screen readers.
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")

STYLE = """
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: auto !important}
.answer textarea {font-size: 1.35rem; line-height: 1.4}
.seconds {min-height: 1.2em; color: var(--body-text-color-subdued); font-size: var(--text-sm)}
footer {display: none !important}
/* An error is told once, in words, at the top. */
[data-testid=status-tracker] .error {display: none}
/* Cutting a video would need a program from elsewhere. */
button[aria-label^="Trim video"], button[aria-label^="Reset video"] {display: none}
/* The search's pictures: all of them, as many side by side as there is room for. */
.found .grid-wrap {max-height: none !important; overflow: visible !important; padding-top: 2.4rem}
.found .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(44%, 200px), 1fr)) !important}
.found .caption-label {font-variant-numeric: tabular-nums}
.tr-body:focus-visible, .gallery-item:focus-visible, .thumbnail-item:focus-visible, button:focus-visible {
  outline: 3px solid var(--color-accent); outline-offset: 2px}
.table-wrap, .table-wrap * {
  font-family: var(--font) !important; word-break: normal !important; overflow-wrap: normal !important}
.dark button[role=tab].selected {color: var(--primary-300) !important}
@media (max-width: 600px) {
  .gradio-container {padding: 0.5rem !important}
  h1 {font-size: 1.4rem !important}
  .table-wrap th *, .table-wrap td * {font-size: 0.85rem; padding-inline: 0.1rem !important}
  .tr-head th, .tr-body td {padding: 0.25rem !important}
  .tr-body .container.table {width: 64px !important; height: 64px !important}
}
@media (prefers-reduced-motion: reduce) {* {transition: none !important; animation-duration: 1ms !important}}
"""


def theme() -> gr.themes.Base:
    """Return the theme: text and buttons have a contrast of 4.5 to 1 (WCAG 2.2, level AA) on what they stand on."""
    # Gradio writes labels and buttons in the 500s, which are too pale.
    indigo = {f"c{shade}": getattr(colors.indigo, f"c{shade}") for shade in (50, *range(100, 1000, 100), 950)}
    primary = colors.Color(**indigo | {"c500": indigo["c700"], "c600": indigo["c800"]}, name="deep-indigo")
    quiet = {"": "*neutral_600", "_dark": "*neutral_300"}
    return gr.themes.Soft(
        primary_hue=primary,
        secondary_hue=primary,
        font=["system-ui", "sans-serif"],  # those of the visitor's machine; Gradio's own would be fetched
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        block_border_width="1px",
        **{f"body_text_color_subdued{mode}": color for mode, color in quiet.items()},
        **{f"block_info_text_color{mode}": color for mode, color in quiet.items()},
        **{f"input_placeholder_color{mode}": color for mode, color in quiet.items()},
    )
