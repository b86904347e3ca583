"""A process that reads data, or a rank, is gone: the others end with an error that names it, and the run resumes."""

from __future__ import annotations

import itertools
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trust.faults import (
    FULL,
    KILLED_WORKER,
    Apart,
    Fault,
    chosen_moments,
    count_moments,
    resuming,
    run_apart,
    training,
)
from tests.trust.outcomes import assert_same, injected
from tests.trust.test_resume_after_faults import STAGES, go_on, settings_of, what_it_left
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings

READS_DATA = ("sft", "rl") if FULL else ("sft",)
"""The gate trains on cached features."""
LOST = list(itertools.product(STAGES, (0, 1))) if FULL else [("sft", 1)]
"""Stages, and the rank that is lost."""


def with_a_worker(stage: str, folder: Path) -> Settings:
    settings = settings_of(stage, folder)
    longer = replace(settings.stage, max_steps=8)  # than what is read ahead
    return replace(settings, data=replace(settings.data, num_workers=1), stage=longer)


@pytest.mark.parametrize("stage", READS_DATA)
def test_a_killed_data_worker_is_named_and_the_run_resumes(stage: str, tmp_path: Path) -> None:
    count = count_moments(training(with_a_worker(stage, tmp_path / "straight")))
    expected = what_it_left(tmp_path / "straight")
    for number, moment in enumerate(chosen_moments(count // 2, f"{KILLED_WORKER} {stage}")):
        settings, run = with_a_worker(stage, tmp_path / str(number)), RunFolder(tmp_path / str(number))
        with injected(KILLED_WORKER, stage, number):
            assert run_apart(training(settings), Fault(KILLED_WORKER, moment)) == 2
            assert "one of the 1 processes that read data is gone: DataLoader worker" in run.read_status()["error"]
            go_on(settings)
            assert_same(what_it_left(run.path), expected, f"worker killed from moment {moment} of {count} on")


def on_two_ranks(stage: str, folder: Path) -> Settings:
    settings = settings_of(stage, folder)
    more = replace(settings.stage, prompts_per_step=2) if stage == "rl" else settings.stage
    return replace(settings, stage=more, trainer=replace(settings.trainer, devices=2, strategy="ddp"))


def train_together(settings: Settings, fault: Fault | None = None, lost: int = 0) -> tuple[list[int], int]:
    """Train in two processes over gloo.

    Args:
        settings: of the run.
        fault: what one of them meets.
        lost: which one.

    Returns:
        Exit codes by rank, and how many moments rank `lost` had.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in (0, 1):
        work = training(settings, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        ranks.append(Apart(work, fault if rank == lost else None))
    return [rank.exit_code() for rank in ranks], ranks[lost].moments


@pytest.mark.parametrize(("stage", "lost"), LOST)
def test_a_lost_rank_is_named_and_the_run_resumes(stage: str, lost: int, tmp_path: Path) -> None:
    codes, count = train_together(on_two_ranks(stage, tmp_path / "straight"), lost=lost)
    assert codes == [0, 0]
    expected = what_it_left(tmp_path / "straight")
    for number, moment in enumerate(chosen_moments(count // 2, f"lost rank {lost} of {stage}")):
        late = count // 2 + moment  # by then the ranks have met
        settings, run = on_two_ranks(stage, tmp_path / str(number)), RunFolder(tmp_path / str(number))
        with injected("lost rank", stage, 100 * lost + number):
            codes, _ = train_together(settings, Fault("SIGKILL", late), lost)
            assert codes[lost] == -9
            assert codes[1 - lost] == 2
            status = run.read_status()
            if status["status"] != "COMPLETED":
                if lost == 1:
                    assert "rank 0 has lost another of the 2 ranks" in status["error"]
                assert train_together(resuming(settings))[0] == [0, 0]
            assert_same(what_it_left(run.path), expected, f"rank {lost} killed at moment {late} of {count}")
