"""Notices files that are replaced while they are being read."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.errors import DataError

FileState = tuple[int, int]
"""Time of the last change in ns, and size in bytes."""


def file_state(path: Path) -> FileState:
    """What a file is like now.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def check_state(path: Path, state: FileState) -> None:
    """Refuse a file that was replaced: its rows may be others.

    Raises:
        DataError: it is not in that state.
        OSError: there is no such file.
    """
    if file_state(path) != state:
        raise DataError(f"{path} has changed since it was opened. Leave it in place while it is used, and start again")
