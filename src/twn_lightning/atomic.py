"""Files that are there whole or not at all: written beside their place, synced to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".*.[0-9]*.tmp"
"""Names of files that are being written, as a glob pattern."""


@contextmanager
def whole_file(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """A name to write to; what is there when the block ends takes the place of `path` in one step.

    After an error, such as a full disk, the earlier file is as it was. So it is after a crash, which also leaves the
    unfinished one under a name that `remove_unfinished` knows.

    Args:
        path: the file to make or to replace; its folder is created.
        scratch: folder of the unfinished file, on the same file system; by default the file's own.

    Yields:
        A name that only this process uses.
    """
    scratch = path.parent if scratch is None else scratch
    for folder in (path.parent, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = scratch / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # the rename itself


def remove_unfinished(folder: Path) -> None:
    """Delete what crashed processes left anywhere below a folder in which no other process writes."""
    for path in folder.rglob(UNFINISHED):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
