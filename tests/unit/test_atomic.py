"""Files that are there whole or not at all, whatever happens to their writer."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from twn_lightning.atomic import UNFINISHED, remove_unfinished, whole_file, writing
from twn_lightning.errors import DataError, StorageError

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from twn_lightning import atomic

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = die
with atomic.whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("new")
"""


def test_a_block_that_ends_well_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    for text in ("first", "second"):
        with whole_file(path) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_the_unfinished_file_may_be_elsewhere(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file", scratch=tmp_path / "parts") as temporary:
        assert temporary.parent == tmp_path / "parts"
        temporary.write_text("text")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    path, plain, calls = tmp_path / "file", os.fsync, []
    path.write_text("old")

    def full_at_the_chosen_call(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    monkeypatch.setattr("os.fsync", full_at_the_chosen_call)
    with (
        pytest.raises(StorageError, match=r"/file could not be written: No space left .* free there"),
        whole_file(path) as temporary,
    ):
        temporary.write_text("new")
    assert path.read_text() == ("old" if failing == 1 else "new")  # the second call syncs the folder
    assert list(tmp_path.iterdir()) == [path]


def write_with_torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(torch.zeros(100_000), file)


def write_with_safetensors(path: Path) -> None:
    save_file({"zeros": torch.zeros(100_000)}, path)


def write_with_parquet(path: Path) -> None:
    pq.write_table(pa.table({"numbers": np.arange(100_000)}), path)


def write_with_python(path: Path) -> None:
    path.write_text("0" * 100_000)


@contextmanager
def small_files_only(size: int) -> Iterator[None]:
    """Lets the system refuse to make any file longer than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [write_with_torch, write_with_safetensors, write_with_parquet, write_with_python])
def test_whichever_library_finds_no_room_the_error_names_the_file(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    too_large = pytest.raises(StorageError, match="/file could not be written: File too large")
    with small_files_only(20_000), too_large, whole_file(path) as temporary:
        write(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [DataError("a row"), PermissionError(errno.EACCES, "denied"), RuntimeError("other")])
def test_other_errors_go_through_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as found, writing(tmp_path / "file"):
        raise error
    assert found.value is error


def test_a_writer_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"
    assert [left.read_text() for left in tmp_path.glob(UNFINISHED)] == ["new"]
    (tmp_path / ".mine.tmp").touch()
    remove_unfinished(tmp_path)
    assert sorted(left.name for left in tmp_path.iterdir()) == [".mine.tmp", "file"]
