"""Two ranks with unequal batches give the gradients of one rank with both."""

from __future__ import annotations

import datetime
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.objectives import gather_positive_rows, gather_with_local_gradient, info_nce

HASHES = [torch.tensor([3, 5, 7]), torch.tensor([5, 9])]
"""Distinct targets of each rank; 5 is encoded on both."""
POSITIVES = [torch.tensor([0, 1, 2, 1]), torch.tensor([1, 0])]


def features(rank: int) -> tuple[Tensor, Tensor]:
    """Inputs of one rank; a target's input depends on its hash alone, so 5 is the same on both ranks."""
    queries = torch.randn(len(POSITIVES[rank]), 6, generator=torch.Generator().manual_seed(rank))
    targets = [torch.randn(6, generator=torch.Generator().manual_seed(100 + int(h))) for h in HASHES[rank]]
    return queries, torch.stack(targets)


def encode(weight: Tensor, inputs: Tensor) -> Tensor:
    return F.normalize(inputs @ weight, dim=-1)


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    weight = torch.eye(6).requires_grad_()
    queries, candidates = (gather_with_local_gradient(encode(weight, x)) for x in features(rank))
    hashes, positive = HASHES[rank], POSITIVES[rank]
    flags = gather_with_local_gradient(hashes == 5)
    loss = info_nce(
        queries, candidates, gather_positive_rows(positive, len(hashes)),
        gather_with_local_gradient(hashes[positive]), gather_with_local_gradient(hashes), 0.1,
    ).loss  # fmt: skip
    (loss * 2).backward()  # the documented rule: world size times the loss, gradients averaged
    assert weight.grad is not None
    dist.all_reduce(weight.grad)
    torch.save((loss.detach(), weight.grad / 2, flags), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    weight = torch.eye(6).requires_grad_()
    inputs = [features(rank) for rank in range(2)]
    queries = encode(weight, torch.cat([queries for queries, _ in inputs]))
    hashes = torch.tensor([3, 5, 7, 9])
    distinct = torch.cat([inputs[0][1], inputs[1][1][1:]])
    positive = torch.tensor([0, 1, 2, 1, 3, 1])
    loss = info_nce(queries, encode(weight, distinct), positive, hashes[positive], hashes, 0.1).loss
    (expected,) = torch.autograd.grad(loss, weight)
    for rank in range(2):
        rank_loss, gradient, flags = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(rank_loss, loss, rtol=1e-6)
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-7)
        assert flags.tolist() == [False, True, False, True, False]


def test_alone_it_passes_the_tensor_through() -> None:
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather_with_local_gradient(tensor) is tensor
    assert gather_positive_rows(torch.tensor([2, 0]), 3).tolist() == [2, 0]
