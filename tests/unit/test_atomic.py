"""Files that are there whole or not at all, whatever happens to their writer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twn_lightning.atomic import UNFINISHED, remove_unfinished, whole_file

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
    with pytest.raises(OSError, match="No space left"), whole_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == ("old" if failing == 1 else "new")  # the second call syncs the folder
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"
    assert [left.read_text() for left in tmp_path.glob(UNFINISHED)] == ["new"]
    (tmp_path / ".mine.tmp").touch()
    remove_unfinished(tmp_path)
    assert sorted(left.name for left in tmp_path.iterdir()) == [".mine.tmp", "file"]
