"""A task ready to be embedded and scored: items with paths, labels by key. Nothing is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twn_lightning.benchmark.protocol import Protocol
from twn_lightning.benchmark.registry import BenchmarkTask
from twn_lightning.types import Item, RankingItem


@dataclass(frozen=True)
class EvalTask:
    """One task's queries, its distinct candidates, and what is right."""

    task: BenchmarkTask
    protocol: Protocol
    queries: list[Item]
    candidates: list[Item]
    """Keys are unique: candidates with the same key are one, the first occurrence."""
    items: list[RankingItem]
    """One per query, in order."""
    skipped: list[str] = field(default_factory=list)
    """What `on_error=skip` left out: one message a row."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was found: num_queries, num_candidates (distinct), skipped, and in local ranking smallest_list and
    largest_list (candidates of a query as listed, repeats included). What the table expects: expected_queries and,
    per query or in the corpus, expected_candidates."""

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def labels(self) -> list[tuple[str, ...]]:
        return [item.labels for item in self.items]

    @property
    def relevance(self) -> list[tuple[float, ...] | None]:
        return [item.relevance for item in self.items]

    @property
    def candidate_keys(self) -> list[tuple[str, ...] | None]:
        return [item.candidate_keys for item in self.items]
