"""A console for wide tables."""

from __future__ import annotations

from rich.console import Console

_WIDTH_IN_FILES = 1000


def table_console() -> Console:
    """The terminal; where the output is none, a console so wide that no column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_IN_FILES)
