"""What both modes did with each query of a benchmark task: the routers' input, measured by the task's own metric.

Every CoT is decoded once, and by way of the embedding cache not even that where the suite has decoded it already.

Shape letters: Q queries of one task, C candidates of the task, L candidates of one query's list, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.nano_mirror import GroundTruth
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.adaptive_cache import CachedDecisions, cached_encoder
from twn_lightning.evaluation.benchmark_suite import SuiteProgress
from twn_lightning.evaluation.embedding_cache import CachedEncoder, EmbeddingCache
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder, GatedEncoder
from twn_lightning.evaluation.outcomes import QueryOutcome
from twn_lightning.evaluation.suite import Evaluation, score_outcomes
from twn_lightning.evaluation.task_scores import ranked_with_quality
from twn_lightning.gate.labels import outcome_losses
from twn_lightning.metrics.scoring import RankedCandidates
from twn_lightning.settings import EvaluationSettings, GateSettings
from twn_lightning.types import EmbeddingMode, Pair, RankingItem, Side

CHUNK_SIZE = 500
"""Items handed to the encoder at once, which batches those of like length."""


@dataclass(kw_only=True)
class SuiteOutcome(QueryOutcome):
    """One query of a task under both modes. Its hits are the task's metric: 0 or 1, or graded."""

    quality_discriminative: float
    quality_generative: float

    @property
    def hit_discriminative(self) -> float:
        return self.quality_discriminative

    @property
    def hit_generative(self) -> float:
        return self.quality_generative


@dataclass
class TaskModes:
    """A task's embeddings: its queries without and with CoTs and what the gate said of them, and its candidates."""

    discriminative_QD: np.ndarray
    generative: EncodedItems
    probability_Q: np.ndarray | None
    """None without a gate."""
    candidates_CD: np.ndarray


def evaluate_outcomes(
    encoder: Encoder,
    tasks: Sequence[EvalTask],
    *,
    suite: str,
    gate_settings: GateSettings,
    evaluation: EvaluationSettings,
    truths: Mapping[str, GroundTruth] | None = None,
    threshold: float = 0.5,
    cache: EmbeddingCache | None = None,
    progress: SuiteProgress | None = None,
) -> Evaluation:
    """Every router's score on the queries of some tasks.

    Args:
        encoder: has the mode `generative`; without a gate the routers that need one are left out.
        tasks: as loaded, under one protocol.
        suite: what the tasks' names are put behind, as in `mmeb_nano/NanoQA`.
        gate_settings: price, temperature and negatives of the gains.
        evaluation: routers, bootstrap samples.
        truths: by key of the query; None: kinds and steps are not known.
        threshold: the gate thinks iff probability > threshold.
        cache: of embeddings; None: none.
        progress: told about tasks and queries.

    Raises:
        ConfigError: an encoder that never thinks.
    """
    progress = progress or SuiteProgress()
    both = BothModes(encoder, EmbeddingMode(tasks[0].protocol.candidate_mode), cache)
    outcomes: list[SuiteOutcome] = []
    for task in tasks:
        progress.side_started(task.name, Side.QUERY, len(task.queries))
        modes = both.encode(task, progress.advanced)
        outcomes += suite_outcomes(task, modes, suite=suite, gate_settings=gate_settings, truths=truths)
    return score_outcomes(
        outcomes,
        suite=suite,
        has_gate=EmbeddingMode.ADAPTIVE in encoder.modes,
        threshold=threshold,
        price=gate_settings.price,
        evaluation=evaluation,
    )


def suite_outcomes(
    task: EvalTask,
    modes: TaskModes,
    *,
    suite: str,
    gate_settings: GateSettings,
    truths: Mapping[str, GroundTruth] | None = None,
) -> list[SuiteOutcome]:
    """Score one task without and with CoTs, query by query.

    The losses are those of `task_outcomes`, over the candidates that the query ranks: the label of the highest grade is
    the positive, every other candidate a negative.

    Args:
        task: as loaded.
        modes: its embeddings.
        suite: what the task's name is put behind, as in `mmeb_nano/NanoQA`.
        gate_settings: temperature and negatives of the losses.
        truths: by key of the query; None: kinds and steps are not known.

    Returns:
        One record per query, in order.
    """
    row_of = {item.key: row for row, item in enumerate(task.candidates)}
    without, thought = _measure(task, modes, row_of, gate_settings)
    generative, outcomes = modes.generative, []
    for i, (query, item) in enumerate(zip(task.queries, task.items, strict=True)):
        truth = (truths or {}).get(query.key)
        kind, steps = (None, None) if truth is None else (truth.kind, truth.steps)
        positive = task.candidates[row_of[_positive(item)]]
        outcomes.append(
            SuiteOutcome(
                pair=Pair(query, positive, f"{suite}/{task.name}", positive.key, steps=steps),
                rank_discriminative=without.ranked[i].keys.index(positive.key) + 1,
                rank_generative=thought.ranked[i].keys.index(positive.key) + 1,
                quality_discriminative=float(without.quality_Q[i]),
                quality_generative=float(thought.quality_Q[i]),
                loss_discriminative=float(without.loss_Q[i]),
                loss_generative=float(thought.loss_Q[i]),
                margin=_margin(without.ranked[i]),
                top1_discriminative=task.candidates[row_of[without.ranked[i].keys[0]]],
                top1_generative=task.candidates[row_of[thought.ranked[i].keys[0]]],
                tokens=int(_wanted(generative.tokens_N)[i]),
                prompt_tokens=None,
                malformed=bool(_wanted(generative.malformed_N)[i]),
                probability=0.0 if modes.probability_Q is None else float(modes.probability_Q[i]),
                cot=generative.cots[i] or "",
                kind=kind,
            )
        )
    return outcomes


class BothModes:
    """Encodes the queries of tasks in both modes, asks the gate about them, and encodes their candidates.

    Args:
        encoder: has the mode `generative`; its gate is asked where it has one.
        candidate_mode: of the candidates.
        cache: of embeddings; None: none.

    Raises:
        ConfigError: an encoder that never thinks.
    """

    def __init__(self, encoder: Encoder, candidate_mode: EmbeddingMode, cache: EmbeddingCache | None = None) -> None:
        if EmbeddingMode.GENERATIVE not in encoder.modes:
            raise ConfigError(
                f"encoder '{encoder.name}' has no generative mode: it never thinks, so there is nothing to route"
            )
        self._thinking = cached_encoder(encoder, Side.QUERY, EmbeddingMode.GENERATIVE, cache)
        self._plain: CachedEncoder
        if EmbeddingMode.ADAPTIVE in encoder.modes and isinstance(encoder, GatedEncoder):
            self._plain = CachedDecisions(encoder, Side.QUERY, cache)
        else:
            self._plain = cached_encoder(encoder, Side.QUERY, EmbeddingMode.DISCRIMINATIVE, cache)
        self._candidates = cached_encoder(encoder, Side.CANDIDATE, candidate_mode, cache)

    def encode(self, task: EvalTask, progress: Callable[[int], None] | None = None) -> TaskModes:
        """One task; `progress` is called with the number of queries done, after each chunk."""
        thought, plain = [], []
        for start in range(0, len(task.queries), CHUNK_SIZE):
            chunk = task.queries[start : start + CHUNK_SIZE]
            thought.append(self._thinking.encode(chunk))
            plain.append(self._plain.encode(chunk))
            if progress is not None:
                progress(len(chunk))
        corpus = task.candidates
        shown = [self._candidates.encode(corpus[i : i + CHUNK_SIZE]) for i in range(0, len(corpus), CHUNK_SIZE)]
        for encoder in (self._thinking, self._plain, self._candidates):
            encoder.flush()
        without = EncodedItems.join(plain)
        return TaskModes(
            without.embedding_ND,
            EncodedItems.join(thought),
            without.probability_N,
            EncodedItems.join(shown).embedding_ND,
        )


@dataclass
class _Measured:
    """One mode of a task's queries: all of each one's candidates, best first, its metric and its loss."""

    ranked: list[RankedCandidates]
    quality_Q: np.ndarray
    loss_Q: np.ndarray


def _measure(
    task: EvalTask, modes: TaskModes, row_of: Mapping[str, int], settings: GateSettings
) -> tuple[_Measured, _Measured]:
    """The queries without and with CoTs, as one list, so that candidates and labels are read once."""
    queries_QD = np.concatenate([modes.discriminative_QD, modes.generative.embedding_ND])
    items = [*task.items, *task.items]
    ranked, quality_Q = ranked_with_quality(
        task, queries_QD, modes.candidates_CD, list(row_of), items, top_k=len(row_of)
    )
    loss_Q = _losses(items, queries_QD, modes.candidates_CD, row_of, settings)
    half = len(task.items)
    return (
        _Measured(ranked[:half], quality_Q[:half], loss_Q[:half]),
        _Measured(ranked[half:], quality_Q[half:], loss_Q[half:]),
    )


def _losses(
    items: Sequence[RankingItem],
    queries_QD: np.ndarray,
    candidates_CD: np.ndarray,
    row_of: Mapping[str, int],
    settings: GateSettings,
) -> np.ndarray:
    """Outcome losses (Q,), queries that rank the same candidates together."""
    lists: dict[frozenset[str] | None, list[int]] = {}
    for i, item in enumerate(items):
        own = None if item.candidate_keys is None else frozenset(item.candidate_keys)
        lists.setdefault(own, []).append(i)
    loss_Q = np.empty(len(items), dtype=np.float32)
    for own, rows in lists.items():
        candidate_L = np.arange(len(candidates_CD)) if own is None else np.sort([row_of[key] for key in own])
        positive = torch.tensor(np.searchsorted(candidate_L, [row_of[_positive(items[i])] for i in rows]))
        loss_Q[rows] = outcome_losses(
            torch.from_numpy(queries_QD[rows]),
            torch.from_numpy(candidates_CD[candidate_L]),
            positive,
            positive,
            torch.arange(len(candidate_L)),
            temperature=settings.label_temperature,
            num_negatives=settings.num_negatives,
        ).numpy()
    return loss_Q


def _positive(item: RankingItem) -> str:
    """The label of the highest grade, of equals the first."""
    return item.labels[0 if item.relevance is None else int(np.argmax(item.relevance))]


def _margin(ranking: RankedCandidates) -> float:
    """Top-1 minus top-2 similarity; of a single candidate 0."""
    return ranking.scores[0] - ranking.scores[min(1, len(ranking.scores) - 1)]


def _wanted(values: np.ndarray | None) -> np.ndarray:
    assert values is not None, "the generative mode counts tokens"
    return values
