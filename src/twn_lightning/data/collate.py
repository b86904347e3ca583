"""Pairs to one stage-1 batch: distinct targets once, hard negatives behind them, CoTs as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch

from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.corpus import COT_FORMAT, ThinkSides, is_label_like, normalise_cot, thinks
from twn_lightning.errors import DataError
from twn_lightning.types import ContrastiveBatch, CotBatch, Item, Pair, Side

MIXED = "mixed"
"""`ContrastiveBatch.source` of a batch whose sub-batches come from several sources."""


class ContrastiveCollator:
    """Turns pairs into a `ContrastiveBatch`.

    Targets with equal hashes are encoded once: `positive_B` points several queries at one candidate. Hard negatives
    follow the positives; one that is also somebody's positive is not repeated.

    Args:
        processor: renders, tokenises and patchifies.
        think_sides: sides whose teacher CoT goes into the batch; None leaves both out, as RL needs it.
    """

    def __init__(self, processor: PromptProcessor, think_sides: ThinkSides | None) -> None:
        self.processor = processor
        self.think_sides = think_sides

    def __call__(self, pairs: Sequence[Pair]) -> ContrastiveBatch:
        """Collate pairs, in order.

        Returns:
            A batch on the CPU. A candidate without CoT (a label-like target or a hard negative) has an empty row in
            `candidate_cots`: mask 0 throughout, not closed.

        Raises:
            DataError: no pairs, a missing or malformed CoT on a side that thinks, or unreadable media; names the item.
        """
        if not pairs:
            raise DataError("no pairs to collate: the batch is empty")
        targets = self._distinct_targets(pairs)
        negatives = {
            digest: item
            for pair in pairs
            for digest, item in zip(_negative_hashes(pair), pair.hard_negatives, strict=True)
            if digest not in targets
        }
        row_of = {digest: row for row, digest in enumerate(targets)}
        candidates = [*targets.values(), *negatives.values()]
        sources = {pair.source for pair in pairs}
        hash_Q = torch.tensor([target_hash_int64(pair.target_hash) for pair in pairs])
        return ContrastiveBatch(
            queries=self.processor([pair.query for pair in pairs]),
            query_cots=self._cots(Side.QUERY, [pair.query for pair in pairs], len(pairs)),
            candidates=self.processor(candidates),
            candidate_cots=self._cots(Side.CANDIDATE, candidates, len(targets)),
            positive_B=torch.tensor([row_of[pair.target_hash] for pair in pairs]),
            target_hash_Q=hash_Q,
            target_hash_C=torch.tensor([target_hash_int64(digest) for digest in (*targets, *negatives)]),
            candidate_is_negative_C=torch.arange(len(candidates)) >= len(targets),
            source=sources.pop() if len(sources) == 1 else MIXED,
            pairs=list(pairs),
        )

    def _distinct_targets(self, pairs: Sequence[Pair]) -> dict[str, Item]:
        """Positives by target hash, in order of appearance; of equal ones, the first with a CoT where CoTs are used."""
        targets: dict[str, Item] = {}
        wants_cot = self.think_sides is not None and thinks(Side.CANDIDATE, self.think_sides)
        for pair in pairs:
            known = targets.get(pair.target_hash)
            if known is None or (wants_cot and not known.cot and pair.positive.cot):
                targets[pair.target_hash] = pair.positive
        return targets

    def _cots(self, side: Side, items: Sequence[Item], required: int) -> CotBatch | None:
        """CoTs of one side; the first `required` items must have one, unless they are label-like candidates."""
        if self.think_sides is None or not thinks(side, self.think_sides):
            return None
        texts: list[str | None] = []
        for row, item in enumerate(items):
            optional = row >= required or (side is Side.CANDIDATE and is_label_like(item))
            texts.append(_checked_cot(side, item, optional))
        return self.processor.encode_cots(texts)


def _negative_hashes(pair: Pair) -> Sequence[str]:
    """By the rule of the pair's target hash: contents are read only where the source does not tell."""
    return pair.negative_hashes or [item.content_hash() for item in pair.hard_negatives]


def _checked_cot(side: Side, item: Item, optional: bool) -> str | None:
    """The item's CoT, normalised to end in `</answer>`; None where there is none and none is needed."""
    text = normalise_cot(item.cot or "")
    if not text and optional:
        return None
    if not text:
        kind = "no CoT" if item.cot is None else "an empty CoT"
        others = "candidate" if side is Side.QUERY else "query"
        raise DataError(
            f"item '{item.key}' ({side.value}) has {kind}, but the {side.value} side thinks. "
            f"Annotate it, drop the row, or set data.think_sides to '{others}'"
        )
    if not COT_FORMAT.fullmatch(text):
        raise DataError(
            f"item '{item.key}' ({side.value}): its CoT is not `<think> ... </think><answer> ... </answer>` but "
            f"ends in {text[-40:]!r}. Filter the corpus with data.corpus.filter_cots, or repair the row"
        )
    return text


@lru_cache(maxsize=65_536)
def target_hash_int64(target_hash: str) -> int:
    """A target hash as a signed 64-bit integer, for tensors. Equal strings give equal integers in every process."""
    return int.from_bytes(hashlib.blake2b(target_hash.encode(), digest_size=8).digest(), "big", signed=True)
