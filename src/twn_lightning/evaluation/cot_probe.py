"""Does the chain of thought matter? Queries embedded with their own CoT, with tampered ones, and with other queries'.

Each query's CoT is generated once; every condition then teacher-forces a sequence of token ids behind the same prompt:

    own            the query's own CoT
    none           no CoT: the discriminative embedding
    shuffled       the words of each part of the own CoT, in random order
    other          the own CoT of another query of the task, whose target is another
    other_answer   own reasoning, with that query's answer
    answer_only    own answer, nothing between the think tags
    think_only     own reasoning, nothing between the answer tags
    teacher        the source's CoT of the query: the true one where the source made the question

Shape letters: Q queries, V conditions that read a CoT, B queries of one batch, T CoT tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.stop_text import StopText
from twn_lightning.data.corpus import normalise_cot
from twn_lightning.data.sources import PairSource, Split
from twn_lightning.errors import DataError
from twn_lightning.evaluation.cot_edits import TaggedCot, read_cot
from twn_lightning.evaluation.probes import (
    Columns,
    evaluating,
    grouped_scores,
    hits_at_1,
    plain_interval,
    probed_pairs,
    query_columns,
    task_corpora,
)
from twn_lightning.evaluation.suite import encode_candidates
from twn_lightning.metrics import bootstrap_mean, paired_bootstrap_difference
from twn_lightning.types import CotBatch, Item, Pair

Ids = tuple[int, ...]

READING = ("own", "shuffled", "other", "other_answer", "answer_only", "think_only", "teacher")
"""Conditions that read a CoT."""
BORROWING = ("other", "other_answer")
"""Conditions that read another query's CoT, or a part of it."""
CONDITIONS = ("own", "none", *READING[1:])


@dataclass
class CotProbe:
    """What each condition did with each query whose own CoT is well formed."""

    columns: Columns
    """`query_columns`, and per condition `hit/`, `cosine/` (to the embedding with the own CoT), `tokens/` and
    `unchanged/` (1 where the tokens are the own CoT's); NaN where a condition has no CoT for a query. For borrowed CoTs
    `follows/`: 1 where the top candidate is the other query's target. `cosine_of_two_queries`: of the own embeddings of
    a query and of the one whose CoT it borrows."""
    num_queries: int
    """With those left out because their own CoT is malformed or did not close."""

    def scores(self) -> dict[str, Any]:
        """How many queries were probed, and the scores of every condition."""
        kept = len(self.columns["task"])
        left_out = {"queries": self.num_queries, "malformed_cot_rate": 1 - kept / self.num_queries}
        return {**left_out, **grouped_scores(self.columns, condition_scores)}


def probe_cots(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    count: int,
    *,
    batch_size: int,
    max_new_tokens: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CotProbe:
    """Embed a split's queries under every condition and rank each task's corpus with them.

    Args:
        backbone: in the state to probe; candidates are embedded discriminatively.
        source: brings pairs, each task's corpus and, where it knows them, the queries' true CoTs.
        split: which split.
        count: number of queries.
        batch_size: rows of one forward pass.
        max_new_tokens: cap of a CoT.
        seed: of the shuffling, and of whose CoT is borrowed.
        progress: called with the number of queries whose CoT is generated, after each batch.

    Raises:
        DataError: no queries, or none with a well-formed CoT.
    """
    pairs = probed_pairs(source, split, count)
    with evaluating(backbone):
        own, e_d_QD = _own_cots(backbone, [pair.query for pair in pairs], batch_size, max_new_tokens, progress)
        kept = [row for row, cot in enumerate(own) if cot is not None]
        if not kept:
            raise DataError(
                f"none of the {len(pairs)} generated CoTs is well formed and closed within {max_new_tokens} tokens, so "
                "there is nothing to tamper with: train longer, or raise data.max_new_tokens"
            )
        pairs, cots = [pairs[row] for row in kept], [cot for cot in own if cot is not None]
        rng = np.random.default_rng(seed)
        lender_Q = lenders(pairs, rng)
        variants = [
            _variants(backbone, pair, cot, None if lender < 0 else cots[lender], rng)
            for pair, cot, lender in zip(pairs, cots, lender_Q, strict=True)
        ]
        e_QVD = _read(backbone, [pair.query for pair in pairs], variants, max(1, batch_size // len(READING)))
        embeddings = {"none": e_d_QD[kept]} | {name: e_QVD[:, v] for v, name in enumerate(READING)}
        columns = {
            **query_columns(pairs),
            **_comparisons(embeddings, variants, lender_Q),
            **_outcomes(backbone, source, split, pairs, embeddings, variants, lender_Q, batch_size),
        }
    return CotProbe(columns, len(own))


def lenders(pairs: Sequence[Pair], rng: np.random.Generator) -> np.ndarray:
    """For each query another one of its task whose target is another, at random; -1 where there is none. (Q,)"""
    task_Q = np.array([pair.source for pair in pairs])
    target_Q = np.array([pair.target_hash for pair in pairs])
    found = np.full(len(pairs), -1)
    for row in range(len(pairs)):
        others = np.flatnonzero((task_Q == task_Q[row]) & (target_Q != target_Q[row]))
        if len(others):
            found[row] = rng.choice(others)
    return found


def condition_scores(columns: Columns) -> dict[str, Any]:
    """Scores of each condition over the queries that have it; differences to the own CoT are paired."""
    found: dict[str, Any] = {}
    for name in CONDITIONS:
        has_Q = ~np.isnan(columns[f"hit/{name}"])
        if not has_Q.any():
            continue
        hit, own = columns[f"hit/{name}"][has_Q], columns["hit/own"][has_Q]
        found[name] = {
            "queries": int(has_Q.sum()),
            "hit@1": plain_interval(bootstrap_mean(hit)),
            "minus_own": plain_interval(paired_bootstrap_difference(hit, own)),
            "cosine_to_own": float(columns[f"cosine/{name}"][has_Q].mean()),
            "tokens": float(columns[f"tokens/{name}"][has_Q].mean()),
            "unchanged": float(columns[f"unchanged/{name}"][has_Q].mean()),
        }
        if name in BORROWING:
            found[name]["follows"] = plain_interval(bootstrap_mean(columns[f"follows/{name}"][has_Q]))
            found[name]["cosine_of_two_queries"] = float(columns["cosine_of_two_queries"][has_Q].mean())
    return found


def _own_cots(
    backbone: DualLoRABackbone,
    queries: Sequence[Item],
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int], None] | None,
) -> tuple[list[TaggedCot | None], Tensor]:
    """Greedy CoTs, None where malformed or unclosed, and the discriminative embeddings (Q, D)."""
    texts = StopText.of(backbone.processor.tokenizer, backbone.shape.vocabulary).texts
    cots: list[TaggedCot | None] = []
    embeddings = []
    for start in range(0, len(queries), batch_size):
        batch = queries[start : start + batch_size]
        state = backbone.reason(backbone.processor(batch).to(backbone.device))
        embeddings.append(_present(backbone.embed(state, ["discriminative"]).discriminative_BD).cpu())
        generated = decode_cots(backbone, state, max_new_tokens=max_new_tokens).cots
        for ids, length, closed in zip(generated.ids_BT, generated.lengths_B, generated.closed_B, strict=True):
            cots.append(read_cot(ids[:length].tolist(), texts) if closed else None)
        if progress is not None:
            progress(len(batch))
    return cots, torch.cat(embeddings)


def _variants(
    backbone: DualLoRABackbone, pair: Pair, own: TaggedCot, other: TaggedCot | None, rng: np.random.Generator
) -> dict[str, Ids | None]:
    """The CoT that each condition reads; None where it has none."""
    teacher = None
    if pair.query.cot is not None:
        batch = backbone.processor.encode_cots([normalise_cot(pair.query.cot)])
        teacher = tuple(batch.ids_BT[0].tolist())
    return {
        "own": own.ids,
        "shuffled": own.shuffled(rng),
        "other": None if other is None else other.ids,
        "other_answer": None if other is None else own.answered_by(other),
        "answer_only": own.without(own.think),
        "think_only": own.without(own.answer),
        "teacher": teacher,
    }


def _read(
    backbone: DualLoRABackbone, queries: Sequence[Item], variants: Sequence[dict[str, Ids | None]], batch_size: int
) -> Tensor:
    """Generative embeddings (Q, V, D) of each query under its V CoTs; a missing one is replaced by its own."""
    found = []
    for start in range(0, len(queries), batch_size):
        rows = slice(start, start + batch_size)
        prompts = backbone.processor(queries[rows]).to(backbone.device)
        ids = [variant[name] or variant["own"] for variant in variants[rows] for name in READING]
        cots = cot_batch([row for row in ids if row is not None], backbone.processor.pad_id).to(backbone.device)
        state = backbone.reason(prompts, cots, completions=len(READING))
        e_g = _present(backbone.embed(state, ["generative"]).generative_BD)
        found.append(e_g.unflatten(0, (-1, len(READING))).cpu())
    return torch.cat(found)


def cot_batch(rows: Sequence[Ids], pad_id: int) -> CotBatch:
    """Token ids as right-padded, closed CoTs."""
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
    return CotBatch(ids_BT, mask_BT, torch.ones(len(rows), dtype=torch.bool))


def _comparisons(
    embeddings: dict[str, Tensor], variants: Sequence[dict[str, Ids | None]], lender_Q: np.ndarray
) -> Columns:
    """`cosine/`, `tokens/` and `unchanged/` of each condition, and the cosine of two queries."""
    own_QD = embeddings["own"]
    columns: Columns = {}
    for name in CONDITIONS:
        ids: list[Ids | None] = [() if name == "none" else variant[name] for variant in variants]
        has_Q = np.array([row is not None for row in ids])
        cosine_Q = (embeddings[name] * own_QD).sum(-1).double().numpy()
        columns[f"cosine/{name}"] = np.where(has_Q, cosine_Q, np.nan)
        columns[f"tokens/{name}"] = np.array([np.nan if row is None else len(row) for row in ids])
        same = [row == variant["own"] for row, variant in zip(ids, variants, strict=True)]
        columns[f"unchanged/{name}"] = np.where(has_Q, np.array(same, dtype=np.float64), np.nan)
    between_Q = (own_QD * own_QD[lender_Q]).sum(-1).double().numpy()
    columns["cosine_of_two_queries"] = np.where(lender_Q >= 0, between_Q, np.nan)
    return columns


def _outcomes(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    pairs: Sequence[Pair],
    embeddings: dict[str, Tensor],
    variants: Sequence[dict[str, Ids | None]],
    lender_Q: np.ndarray,
    batch_size: int,
) -> Columns:
    """`hit/` of each condition, and `follows/` of those that borrow."""
    columns = {f"hit/{name}": np.full(len(pairs), np.nan) for name in CONDITIONS}
    columns |= {f"follows/{name}": np.full(len(pairs), np.nan) for name in BORROWING}
    positive_Q = torch.zeros(len(pairs), dtype=torch.long)
    for corpus in task_corpora(pairs, source, split):
        candidates_CD = encode_candidates(backbone, corpus.candidates, batch_size)
        positive_Q[corpus.rows] = corpus.positive_R
        for name in CONDITIONS:
            columns[f"hit/{name}"][corpus.rows] = corpus.hits(embeddings[name], candidates_CD)
        for name in BORROWING:
            other_R = positive_Q[lender_Q[corpus.rows]]
            columns[f"follows/{name}"][corpus.rows] = hits_at_1(embeddings[name][corpus.rows], candidates_CD, other_R)
    for name in READING:
        missing_Q = np.array([variant[name] is None for variant in variants])
        columns[f"hit/{name}"][missing_Q] = np.nan
        if name in BORROWING:
            columns[f"follows/{name}"][missing_Q] = np.nan
    return columns


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
