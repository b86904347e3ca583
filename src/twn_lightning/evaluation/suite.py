"""Evaluate a source's tasks under every router, from one encoding: each CoT is decoded once for all of them.

Shape letters: N queries of the suite, D embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from twn_lightning.atomic import whole_file, write_text
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.early_exit import ExitRule
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.data.sources import PairSource, Split
from twn_lightning.errors import DataError
from twn_lightning.evaluation.decisions import decision_table
from twn_lightning.evaluation.outcomes import QueryOutcome, task_outcomes
from twn_lightning.evaluation.output_checks import check_closed, check_embeddings, check_gate
from twn_lightning.gate.labels import thinking_gain
from twn_lightning.gate.routers import Outcomes, RouterScore, evaluate_router
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.json_object import write_json
from twn_lightning.metrics import bootstrap_mean, gate_scores
from twn_lightning.run import RunFolder
from twn_lightning.settings import EvaluationSettings, GateSettings
from twn_lightning.types import EmbeddingMode, Item, Pair

GATED_ROUTERS = ("adaptive", "random", "random_equal_tokens", "margin", "query_length")
"""Routers that need a gate: they are it, or spend what it spends."""

Progress = Callable[[int], None]


@dataclass
class Evaluation:
    """What one evaluation recorded; every number of the report follows from it."""

    suite: str
    outcomes: list[QueryOutcome]
    gain_N: np.ndarray
    think_N: np.ndarray
    threshold: float
    router_scores: dict[str, RouterScore]
    gate_metrics: dict[str, float | None]

    @cached_property
    def decisions(self) -> pa.Table:
        """One row per query: the content of gate_decisions.parquet."""
        return decision_table(self.outcomes, self.gain_N, self.think_N)

    def write_decisions(self, run: RunFolder) -> None:
        """Write gate_decisions.parquet."""
        import pyarrow.parquet as pq

        with whole_file(run.gate_decisions) as temporary:
            pq.write_table(self.decisions, temporary)

    def write(self, run: RunFolder, run_key: str, record: Mapping[str, Any] | None = None) -> None:
        """Write gate_decisions.parquet, and scores.json and predictions.jsonl of every task.

        Args:
            run: where.
            run_key: names the folder of the tasks.
            record: how the scores came about, kept in every scores.json; see `encoder_record`.
        """
        self.write_decisions(run)
        tasks = sorted({o.pair.source for o in self.outcomes})
        for task in tasks:
            rows = [i for i, o in enumerate(self.outcomes) if o.pair.source == task]
            folder = run.eval_dir(self.suite, run_key, task.replace("/", "_"))
            self._write_task(folder, task, rows, record or {})

    def _write_task(self, folder: Path, task: str, rows: list[int], record: Mapping[str, Any]) -> None:
        chosen = [self.outcomes[i] for i in rows]
        think = self.think_N[rows]
        discriminative = np.array([o.hit_discriminative for o in chosen])
        generative = np.array([o.hit_generative for o in chosen])
        scores = {
            "task": task,
            "num_queries": len(rows),
            "hit@1": {
                "never": float(discriminative.mean()),
                "always": float(generative.mean()),
                "adaptive": float(np.where(think, generative, discriminative).mean()),
            },
            "think_rate": float(think.mean()),
            "tokens_per_query": float((think * np.array([o.tokens for o in chosen])).mean()),
            "malformed_cot_rate": float(np.mean([o.malformed for o in chosen])),
            **record,
        }
        lines = [json.dumps(_prediction(o, bool(t))) + "\n" for o, t in zip(chosen, think, strict=True)]
        write_text(folder / "predictions.jsonl", "".join(lines))
        write_json(folder / "scores.json", scores)


def evaluate_source(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    count: int,
    *,
    gate: RoutingGate | None,
    threshold: float,
    gate_settings: GateSettings,
    evaluation: EvaluationSettings,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> Evaluation:
    """Encode a split's queries with and without CoT, and score every router on what happened.

    Args:
        backbone: in the state to evaluate.
        source: brings pairs and each task's whole candidate corpus.
        split: which split.
        count: number of queries.
        gate: None leaves out the routers that need one.
        threshold: the gate thinks iff probability > threshold.
        gate_settings: price and label temperature of the gains.
        evaluation: routers, bootstrap samples, batch size, early exit.
        max_new_tokens: cap of a CoT.
        progress: called with the number of queries encoded, after each batch.

    Raises:
        DataError: the split is empty, or a positive is missing from its corpus.
    """
    pairs = source.pairs(split, count)
    if len(pairs) == 0:
        raise DataError(f"source '{source.name}', split '{split}': no queries to evaluate; raise data.{split}_pairs")
    outcomes = encode_outcomes(
        backbone,
        source,
        split,
        list(pairs),
        gate=gate,
        gate_settings=gate_settings,
        batch_size=evaluation.batch_size,
        max_new_tokens=max_new_tokens,
        exit_rule=None if evaluation.exit_tolerance is None else ExitRule(evaluation.exit_tolerance),
        progress=progress,
    )
    return score_outcomes(
        outcomes,
        suite=source.name,
        has_gate=gate is not None,
        threshold=threshold,
        price=gate_settings.price,
        evaluation=evaluation,
    )


def encode_outcomes(
    backbone: DualLoRABackbone,
    source: PairSource,
    split: Split,
    pairs: Sequence[Pair],
    *,
    gate: RoutingGate | None,
    gate_settings: GateSettings,
    batch_size: int,
    max_new_tokens: int,
    exit_rule: ExitRule | None = None,
    progress: Progress | None = None,
    encoded: Encoded | None = None,
) -> list[QueryOutcome]:
    """Outcomes of pairs of any tasks, in their order; arguments as `evaluate_source`.

    Args:
        exit_rule: when to leave a CoT early; never, by default.
        encoded: the queries under mode `generative`, where the caller has encoded them already.
    """
    if encoded is None:
        encoded = encode(
            backbone,
            [pair.query for pair in pairs],
            EmbeddingMode.GENERATIVE,
            gate=gate,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            exit_rule=exit_rule,
            progress=progress,
        )
    outcomes: list[QueryOutcome | None] = [None] * len(pairs)
    for task in dict.fromkeys(pair.source for pair in pairs):
        rows = [i for i, pair in enumerate(pairs) if pair.source == task]
        candidates = source.candidates(split, task)
        candidates_CD = encode_candidates(backbone, candidates, batch_size)
        check_embeddings(candidates_CD, f"task '{task}', candidates")
        scored = task_outcomes(
            [pairs[i] for i in rows],
            encoded.select(rows),
            candidates,
            candidates_CD,
            label_temperature=gate_settings.label_temperature,
            num_negatives=gate_settings.num_negatives,
        )
        for i, outcome in zip(rows, scored, strict=True):
            outcomes[i] = outcome
    unclosed, thought = int(encoded.malformed_N.sum()), int(encoded.think_N.sum())
    check_closed(unclosed, thought, max_new_tokens, f"source '{source.name}', split '{split}'")
    check_embeddings(encoded.discriminative_ND, f"source '{source.name}', split '{split}', queries")
    return [outcome for outcome in outcomes if outcome is not None]


def encode_candidates(backbone: DualLoRABackbone, candidates: Sequence[Item], batch_size: int) -> torch.Tensor:
    """Discriminative embeddings of a corpus (C, D)."""
    return encode(backbone, candidates, EmbeddingMode.DISCRIMINATIVE, batch_size=batch_size).embedding_ND


def score_outcomes(
    outcomes: Sequence[QueryOutcome],
    *,
    suite: str,
    has_gate: bool,
    threshold: float,
    price: float,
    evaluation: EvaluationSettings,
) -> Evaluation:
    """Every router's score on recorded outcomes, and how well the gate ranks and calibrates."""
    gain_N = thinking_gain(
        torch.tensor([o.loss_discriminative for o in outcomes]),
        torch.tensor([o.loss_generative for o in outcomes]),
        torch.tensor([o.tokens for o in outcomes]),
        price=price,
    ).numpy()
    recorded = Outcomes(
        hit_discriminative=np.array([o.hit_discriminative for o in outcomes]),
        hit_generative=np.array([o.hit_generative for o in outcomes]),
        tokens=np.array([o.tokens for o in outcomes]),
        probability=np.array([o.probability for o in outcomes]),
        margin=np.array([o.margin for o in outcomes]),
        query_length=np.array([len(o.pair.query.text) for o in outcomes]),
        gain=gain_N,
        steps=np.array([-1 if o.pair.steps is None else o.pair.steps for o in outcomes]),
        task=np.array([o.pair.source for o in outcomes]),
    )
    routers = [name for name in evaluation.routers if has_gate or name not in GATED_ROUTERS]
    scores = {
        name: evaluate_router(
            name,
            recorded,
            interval=lambda hits: bootstrap_mean(hits, samples=evaluation.bootstrap_samples),
            threshold=threshold,
        )
        for name in routers
    }
    label_N = (gain_N > 0).astype(np.float64)
    gate_metrics: dict[str, float | None] = {"auroc": None, "ece": None}
    if has_gate:
        gate_metrics = dict(
            gate_scores(recorded.probability, label_N, recorded.hit_discriminative, recorded.hit_generative)
        )
        check_gate(recorded.probability, threshold, label_N)
    think_N = recorded.probability > threshold if has_gate else np.zeros(len(outcomes), dtype=bool)
    return Evaluation(suite, list(outcomes), gain_N, think_N, threshold, scores, gate_metrics)


def run_key_of(threshold: float | None, query_mode: str, candidate_mode: str, digest: str) -> str:
    """Folder name of an evaluation: gate, query mode, candidate mode and a digest of what else decides the numbers."""
    gate = "nogate" if threshold is None else f"gate{threshold:.3f}"
    return f"{gate}-q_{query_mode}-c_{candidate_mode}-{digest}"


def _prediction(outcome: QueryOutcome, think: bool) -> dict[str, Any]:
    return {
        "query": outcome.pair.query.key,
        "positive": outcome.pair.positive.key,
        "think": think,
        "rank_discriminative": outcome.rank_discriminative,
        "rank_generative": outcome.rank_generative,
        "top1_discriminative": outcome.top1_discriminative.key,
        "top1_generative": outcome.top1_generative.key,
    }
