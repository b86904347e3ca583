"""Files that are there whole or not at all: written beside their place, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twn_lightning.errors import StorageError, TWNError

UNFINISHED = ".*.[0-9]*.tmp"
"""Names of files that are being written, as a glob pattern."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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

    Raises:
        StorageError: there is no room for the file.
    """
    scratch = path.parent if scratch is None else scratch
    temporary = scratch / f".{path.name}.{os.getpid()}.tmp"
    with writing(path):
        for folder in (path.parent, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)  # the rename itself


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a write that finds no room, inside the block, into an error that names the file.

    Raises:
        StorageError: says which file, why, how much is free there, and what to do.
    """
    try:
        yield
    except TWNError:
        raise
    except Exception as error:
        reason = _no_room(error)
        if reason is None:
            raise
        raise StorageError(
            f"{path} could not be written: {reason} ({_free(path)} free there). Make room or raise the quota; then "
            "training goes on with `twn train --resume RUN`, and other work when its command runs again"
        ) from error


def _no_room(error: BaseException | None) -> str | None:
    """Why a write found no room, if that is what an error or one behind it says: libraries raise their own over it."""
    while error is not None:
        for code in _NO_ROOM:
            if getattr(error, "errno", None) == code or f"(os error {code})" in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def _free(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically, creating its folder."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
