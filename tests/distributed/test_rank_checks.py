"""A rank that has left the others is named, on every rank."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run_on_ranks
from twn_lightning.callbacks.run_checks import check_ranks
from twn_lightning.errors import CheckError


class Trained(nn.Module):
    """What `check_ranks` reads of a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.steps_done = 3
        self.trained = nn.Parameter(torch.ones(100))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)


def compare(rank: int) -> None:
    dist.init_process_group("gloo")
    stage = Trained()
    with torch.no_grad():
        stage.frozen.add_(rank)
    check_ranks(stage)  # type: ignore[arg-type]
    with torch.no_grad():
        stage.trained[7] += 0.01 * rank
    with pytest.raises(CheckError, match=r"rank 1 is at step 3 .* sum 100\.01, rank 0 at step 3 with 100:"):
        check_ranks(stage)  # type: ignore[arg-type]
    with torch.no_grad():
        stage.trained[7] = 1
    stage.steps_done += rank
    with pytest.raises(CheckError, match=r"rank 1 is at step 4 .* rank 0 at step 3"):
        check_ranks(stage)  # type: ignore[arg-type]


def test_other_weights_and_other_steps_are_named() -> None:
    run_on_ranks(compare)
