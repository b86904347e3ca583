"""The CoTs of one side of a task, decoded by all ranks in equal shares.

Chunks hold more or fewer items that think, and a small task is a single chunk, so ranks that kept to their own chunks
would wait for the one with the most CoTs. They let the gate decide first, then share out what thinks, whosever it is;
the embeddings are composed from the cache afterwards. On MMEB-nano the number of CoTs predicts a share's tokens as well
as their gate probabilities do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.evaluation.adaptive_cache import AdaptiveCachedEncoder
from twn_lightning.evaluation.ranks import failing_together
from twn_lightning.strategy import gather_objects, rank, world_size
from twn_lightning.types import Item

AT_ONCE = 32
"""Most CoTs decoded together."""


def think_together(
    encoder: AdaptiveCachedEncoder,
    items: Sequence[Item],
    chunks: Sequence[Sequence[int]],
    progress: Callable[[int], None],
    *,
    skip_errors: bool = False,
) -> int:
    """Fill the cache with the decisions and CoTs of items, each rank its share. Every rank calls this.

    What is decoded together depends on the number of ranks and not on what is cached: resumed = straight.

    Args:
        encoder: of this side; its cache is on a disk that all ranks share, or each decodes its own chunks after all.
        items: the same on every rank.
        chunks: rows of the items that this rank is to decide on.
        progress: called with the number of items done.
        skip_errors: leave chunks with items that cannot be read to the caller.

    Returns:
        How many items of this rank's chunks the cache held already.

    Raises:
        DataError: an item that cannot be read; on every rank.
        NumericalError: an embedding or a probability that is not finite; on every rank.
    """
    thinking: dict[int, bool] = {}
    held = 0
    with failing_together():
        for chunk in chunks:
            try:
                decided = encoder.decide([items[i] for i in chunk])
            except DataError:
                if not skip_errors:
                    raise
                continue
            without_cot_N = decided.think_N & ~decided.has_cot_N
            thinking |= {chunk[i]: bool(without_cot_N[i]) for i in np.flatnonzero(decided.think_N).tolist()}
            held += int((decided.was_held_N & ~without_cot_N).sum())
            progress(len(chunk) - int(without_cot_N.sum()))
        encoder.flush()
    missing = {row: lacks for share in gather_objects(thinking) for row, lacks in share.items()}
    batches = equal_batches(sorted(missing), world_size())
    shares = balanced_shares([sum(missing[row] for row in batch) for batch in batches], world_size())
    with failing_together():
        for number in shares[rank()]:
            encoder.think([items[row] for row in batches[number]])
            progress(sum(missing[row] for row in batches[number]))
        encoder.flush()
    encoder.refresh()
    return held


def equal_batches(rows: Sequence[int], ranks: int, at_once: int = AT_ONCE) -> list[list[int]]:
    """Rows in batches of at most `at_once`, of one size as far as possible, equally many for each rank."""
    batches = ranks * max(1, -(-len(rows) // (at_once * ranks)))
    return [part.tolist() for part in np.array_split(np.asarray(rows, dtype=np.int64), batches) if len(part)]


def balanced_shares(loads: Sequence[float], ranks: int) -> list[list[int]]:
    """Numbers of the loads for each rank: the largest first, each to the rank that has the least so far.

    Args:
        loads: predicted work, such as tokens.
        ranks: how many shares.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0.0] * ranks
    for number in sorted(range(len(loads)), key=lambda number: -loads[number]):
        least = totals.index(min(totals))
        shares[least].append(number)
        totals[least] += loads[number]
    return shares
