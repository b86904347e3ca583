"""Signals that end a run, and SLURM's queue."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest

from twn_lightning.messages import exit_code
from twn_lightning.stopping import STOP_SIGNALS, Stopped, on_stop_signals, requeue, was_requeued


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_ends_the_block_and_gives_the_exit_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with on_stop_signals():
            signal.raise_signal(number)

    assert exit_code(work) == 128 + number
    assert signal.getsignal(number) is before


def test_a_handler_of_ones_own_hears_the_signal() -> None:
    heard = []
    with on_stop_signals(lambda number, frame: heard.append(number)):
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_an_interrupt_is_one_by_its_type() -> None:
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        raise Stopped(signal.SIGTERM)


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}, "8_3"),
    ],
)
def test_the_job_is_put_back_into_the_queue(
    variables: dict[str, str], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol(tmp_path, f'echo "$@" > {tmp_path}/called', monkeypatch)
    requeue(variables)
    assert (tmp_path / "called").read_text() == f"requeue {job}\n"


def test_a_refusal_of_slurm_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scontrol(tmp_path, "echo 'Access denied' >&2; exit 1", monkeypatch)
    with caplog.at_level(logging.WARNING):
        requeue({"SLURM_JOB_ID": "7"})
    assert "SLURM did not take job 7 back into its queue: Access denied" in caplog.text


def test_outside_a_job_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, f"touch {tmp_path}/called", monkeypatch)
    requeue({})
    assert not (tmp_path / "called").exists()


def test_a_restart_is_told_by_slurms_count() -> None:
    assert was_requeued({"SLURM_RESTART_COUNT": "1"})
    assert not was_requeued({"SLURM_RESTART_COUNT": "0"})
    assert not was_requeued({})


def scontrol(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of this name first on the path."""
    (folder / "scontrol").write_text(f"#!/bin/sh\n{line}\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
