"""The candidates of a run, encoded once, for the neighbours of a question.

Shape letters: C distinct candidates, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.nano_mirror import load_mirror, shared_mirror
from twn_lightning.benchmark.registry import NANO_SUITE, select_tasks
from twn_lightning.data.sources import get_source
from twn_lightning.errors import ConfigError
from twn_lightning.evaluate import protocol_of
from twn_lightning.evaluation.adaptive_cache import cached_encoder
from twn_lightning.evaluation.embedding_cache import EmbeddingCache, distinct_rows
from twn_lightning.evaluation.encoders.protocol import Encoder
from twn_lightning.evaluation.item_digest import item_digests
from twn_lightning.settings import Settings
from twn_lightning.types import EmbeddingMode, Item, Side


@dataclass(frozen=True)
class Neighbour:
    """A candidate near a question."""

    item: Item
    score: float
    """Cosine similarity."""


@dataclass(frozen=True)
class Corpus:
    """Distinct candidates and their embeddings.

    Args:
        items: C candidates; what several tasks share is there once.
        embedding_CD: float32, unit norm.
        rows: by task, which of them are its.
        left_out: candidates beyond the limit.
    """

    items: list[Item]
    embedding_CD: np.ndarray
    rows: dict[str, np.ndarray]
    left_out: int = 0

    def nearest(self, query_D: np.ndarray, task: str | None, count: int) -> list[Neighbour]:
        """The best candidates, best first; equal ones in the corpus' order.

        Args:
            query_D: float32, unit norm.
            task: whose candidates; None: all.
            count: how many, at most.
        """
        rows = np.arange(len(self.items)) if task is None else self.rows[task]
        scores = self.embedding_CD[rows] @ query_D
        best = np.argsort(-scores, kind="stable")[:count]
        return [Neighbour(self.items[rows[i]], float(scores[i])) for i in best]


def encode_corpus(
    encoder: Encoder,
    candidates: Mapping[str, Sequence[Item]],
    mode: EmbeddingMode = EmbeddingMode.DISCRIMINATIVE,
    *,
    limit: int = 5000,
    cache: EmbeddingCache | None = None,
) -> Corpus:
    """Encode the candidates of some tasks.

    Args:
        encoder: the run's.
        candidates: by task.
        mode: of their embeddings.
        limit: candidates in all; where there are more, an even share of each task, from its first on.
        cache: of embeddings; None: none.

    Raises:
        ConfigError: no candidates.
        DataError: a candidate whose media cannot be read.
    """
    total = sum(map(len, candidates.values()))
    share = limit if total <= limit else max(1, limit // len(candidates))
    kept = {task: list(items[:share]) for task, items in candidates.items()}
    every = [item for items in kept.values() for item in items]
    if not every:
        raise ConfigError("the run's source has no candidates, so there are no neighbours to show")
    first_C, row_N = distinct_rows(item_digests(every))
    distinct = [every[i] for i in first_C.tolist()]
    ends = np.cumsum([len(items) for items in kept.values()])
    rows = {task: np.unique(part) for task, part in zip(kept, np.split(row_N, ends[:-1]), strict=True)}
    reader = cached_encoder(encoder, Side.CANDIDATE, mode, cache)
    embedding_CD = reader.encode(distinct).embedding_ND
    reader.flush()
    return Corpus(distinct, embedding_CD, rows, total - len(every))


def run_candidates(settings: Settings) -> tuple[dict[str, list[Item]], EmbeddingMode]:
    """The candidates that a run was evaluated on, or that its source has for the test split, and their mode.

    Args:
        settings: of the run.

    Returns:
        Candidates by task, and how the run embeds them.

    Raises:
        ConfigError, DataError: data that are not there any more.
    """
    task = settings.task
    if task.suite == "nano":
        source = get_source(settings.data.source, settings.data)
        return {name: source.candidates("test", name) for name in source.tasks}, EmbeddingMode.DISCRIMINATIVE
    protocol, chosen = protocol_of(task), select_tasks(task.names, task.suite)
    if task.suite == NANO_SUITE:
        parent = Path(settings.paths.output_root).expanduser() / NANO_SUITE
        mirror = shared_mirror(parent, [t.name for t in chosen], settings.data.test_pairs, settings.data.seed)
        loaded = load_mirror(mirror, chosen, protocol)
    elif task.media_root is None:
        raise ConfigError("the run's task.media_root is not set, so its candidates cannot be read")
    else:
        roots = task.annotations_root, task.media_root
        loaded = [load_task(t, *roots, protocol, task.strict_counts, on_error=task.on_error) for t in chosen]
    return {each.name: list(each.candidates) for each in loaded}, EmbeddingMode(protocol.candidate_mode)
