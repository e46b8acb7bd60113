"""Where the programs of the command `mplug` are: in the checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

_INSTALLED = Path(__file__).resolve().parent / "rooms"

#: The folder that holds `clients/`, `builders/`, `model_repository/` and the others. In a wheel it is inside this
#: package, so that site-packages gets no `clients` or `builders` of ours; the programs find each other from there.
ROOMS = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1]

#: The importable client. A wheel holds it beside this file as well, under a name that nobody else has.
CLIENT = "mplug_triton.client" if _INSTALLED.is_dir() else "clients.client"
