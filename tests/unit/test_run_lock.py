"""One writer in a run folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twn_lightning import cli
from twn_lightning.errors import ConfigError
from twn_lightning.run_lock import is_locked, only_writer

HOLDER = """
import sys, time
from pathlib import Path
from twn_lightning.run_lock import only_writer

with only_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        assert is_locked(run)
        with (
            pytest.raises(ConfigError, match=rf"run is in use: process {first.pid} on .*paths\.run_dir"),
            only_writer(run),
        ):
            pass
        os.kill(first.pid, signal.SIGKILL)
    assert not is_locked(run)
    with only_writer(run):
        assert is_locked(run)
    assert not is_locked(run)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_command_into_a_folder_in_use_changes_nothing(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_writer(tmp_path):
        assert cli.main([verb, "model=tiny", f"paths.run_dir={tmp_path}"]) == 2
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert f"twn: {tmp_path} is in use: process {os.getpid()}" in capsys.readouterr().err


def test_what_a_dead_writer_left_is_cleared_up(tmp_path: Path) -> None:
    (tmp_path / ".metrics.json.4711.tmp").touch()
    (tmp_path / "metrics.json").touch()
    with only_writer(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "metrics.json"}


def test_a_folder_without_a_run_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "nowhere")
