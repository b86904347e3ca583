"""One writer in a run folder: a lock that the system releases when its process is gone, however it ended."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twn_lightning.atomic import remove_unfinished
from twn_lightning.errors import ConfigError

log = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a run folder until the block ends; first clear up what a dead one left.

    Args:
        folder: created if missing.

    Raises:
        ConfigError: another process writes there; names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder} is in use: {holder(folder)} writes there. Wait until it ends, or stop it, or set "
                "paths.run_dir to another folder"
            ) from error
        except OSError as error:  # some network file systems
            log.warning("%s cannot be locked (%s): make sure that no other process writes there", folder, error)
        remove_unfinished(folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process writes to a run folder now."""
    try:
        with (folder / LOCK).open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def holder(folder: Path) -> str:
    """The process that last locked a folder, in words."""
    return (folder / LOCK).read_text(encoding="utf-8") or "another process"
