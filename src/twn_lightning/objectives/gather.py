"""The gather across ranks that in-batch negatives need.

Every rank gathers queries, candidates, hashes and (shifted) positive rows, computes the full matrix, and lets only its
own slice carry gradient. The sum of the ranks' gradients is then the one-rank gradient, so a caller whose gradients are
*averaged* over ranks (DDP, FSDP2, `sync_gradients`) multiplies the loss by the world size.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_with_local_gradient(tensor: Tensor) -> Tensor:
    """Concatenate a tensor's rows over all ranks; only this rank's slice carries gradient.

    Args:
        tensor: (N_rank, ...) of any dtype; row counts may differ between ranks, trailing shapes may not.

    Returns:
        (sum of N_rank, ...) in rank order; the tensor itself when torch.distributed is not initialised.
    """
    if not _distributed():
        return tensor
    counts = _row_counts(len(tensor), tensor.device)
    # Collectives want one shape and a dtype that every backend knows: pad to the longest rank, send bool as bytes.
    payload = tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()
    padded = payload.new_zeros((max(counts), *payload.shape[1:]))
    padded[: len(payload)] = payload
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded)
    rows = [part[:count].to(tensor.dtype) for part, count in zip(received, counts, strict=True)]
    rows[dist.get_rank()] = tensor
    return torch.cat(rows)


def gather_positive_rows(positive_Q: Tensor, num_candidates: int) -> Tensor:
    """Gather `positive_Q` over ranks, shifted to the rows of the gathered candidates.

    Args:
        positive_Q: Rows into this rank's candidates, int64 (Q_rank,).
        num_candidates: How many candidates this rank holds.

    Returns:
        Rows into the candidates as `gather_with_local_gradient` orders them, int64 (sum of Q_rank,).
    """
    if not _distributed():
        return positive_Q
    counts = _row_counts(num_candidates, positive_Q.device)
    return gather_with_local_gradient(positive_Q + sum(counts[: dist.get_rank()]))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _row_counts(count: int, device: torch.device) -> list[int]:
    mine = torch.tensor([count], device=device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    return [int(c) for c in counts]
