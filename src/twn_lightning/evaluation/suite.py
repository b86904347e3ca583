"""Evaluate a source's tasks under every router, from one encoding: each CoT is decoded once for all of them.

Shape letters: N queries of the suite, D embedding width.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.backbone.media import load_image
from twn_lightning.data.sources import PairSource, Split
from twn_lightning.errors import DataError
from twn_lightning.evaluation.outcomes import QueryOutcome, task_outcomes
from twn_lightning.gate.labels import thinking_gain
from twn_lightning.gate.routers import Outcomes, RouterScore, evaluate_router
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.metrics import bootstrap_mean, gate_scores
from twn_lightning.run import RunFolder, write_json, write_text
from twn_lightning.settings import EvaluationSettings, GateSettings
from twn_lightning.types import EmbeddingMode, Item, Pair, Side

GATED_ROUTERS = ("adaptive", "random", "random_equal_tokens", "margin", "query_length")
"""Routers that need a gate: they are it, or spend what it spends."""
MAX_THUMBNAILS = 96
THUMBNAIL_PIXELS = 320

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

    def decisions(self) -> pa.Table:
        """One row per query: the content of gate_decisions.parquet."""
        shown = _shown(self.outcomes, self.think_N)
        return pa.Table.from_pylist([self._row(i, i in shown) for i in range(len(self.outcomes))], schema=_SCHEMA)

    def _row(self, i: int, with_image: bool) -> dict[str, Any]:
        o = self.outcomes[i]
        query = o.pair.query
        return {
            "query_key": query.key,
            "task": o.pair.source,
            "side": Side.QUERY.value,
            "steps": o.pair.steps,
            "probability": o.probability,
            "think": bool(self.think_N[i]),
            "hit_discriminative": o.hit_discriminative,
            "hit_generative": o.hit_generative,
            "loss_discriminative": o.loss_discriminative,
            "loss_generative": o.loss_generative,
            "gain": float(self.gain_N[i]),
            "tokens": o.tokens,
            "prompt_tokens": o.prompt_tokens,
            "query_length": len(query.text),
            "margin": o.margin,
            "malformed": o.malformed,
            "query_text": f"{query.instruction} {query.text}".strip(),
            "cot": o.cot,
            "positive": _name(o.pair.positive),
            "top1_discriminative": _name(o.top1_discriminative),
            "top1_generative": _name(o.top1_generative),
            "image_png": _thumbnail(query) if with_image else None,
        }

    def write(self, run: RunFolder, run_key: str) -> None:
        """Write gate_decisions.parquet, and scores.json and predictions.jsonl of every task."""
        import pyarrow.parquet as pq

        run.path.mkdir(parents=True, exist_ok=True)
        temporary = run.gate_decisions.with_suffix(".tmp")
        pq.write_table(self.decisions(), temporary)
        temporary.replace(run.gate_decisions)
        tasks = sorted({o.pair.source for o in self.outcomes})
        for task in tasks:
            rows = [i for i, o in enumerate(self.outcomes) if o.pair.source == task]
            self._write_task(run.eval_dir(self.suite, run_key, task.replace("/", "_")), task, rows)

    def _write_task(self, folder: Path, task: str, rows: list[int]) -> None:
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
        }
        write_json(folder / "scores.json", scores)
        lines = [json.dumps(_prediction(o, bool(t))) + "\n" for o, t in zip(chosen, think, strict=True)]
        write_text(folder / "predictions.jsonl", "".join(lines))


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
        evaluation: routers, draws, bootstrap samples, batch size.
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
        progress=progress,
    )
    return score_outcomes(
        outcomes,
        suite=evaluation.suite,
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
    progress: Progress | None = None,
    encoded: Encoded | None = None,
) -> list[QueryOutcome]:
    """Outcomes of pairs of any tasks, in their order; arguments as `evaluate_source`.

    Args:
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
            progress=progress,
        )
    outcomes: list[QueryOutcome | None] = [None] * len(pairs)
    for task in dict.fromkeys(pair.source for pair in pairs):
        rows = [i for i, pair in enumerate(pairs) if pair.source == task]
        candidates = source.candidates(split, task)
        candidates_CD = encode_candidates(backbone, candidates, batch_size)
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
            draws=evaluation.random_draws,
        )
        for name in routers
    }
    label_N = (gain_N > 0).astype(np.float64)
    gate_metrics: dict[str, float | None] = {"auroc": None, "ece": None}
    if has_gate:
        gate_metrics = dict(
            gate_scores(recorded.probability, label_N, recorded.hit_discriminative, recorded.hit_generative)
        )
    think_N = recorded.probability > threshold if has_gate else np.zeros(len(outcomes), dtype=bool)
    return Evaluation(suite, list(outcomes), gain_N, think_N, threshold, scores, gate_metrics)


def run_key_of(mode: str, threshold: float, protocol: dict[str, Any]) -> str:
    """Folder name of an evaluation: gate, query mode, candidate mode and a digest of what else decides the numbers."""
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]
    return f"gate{threshold:.3f}-q_{mode}-c_discriminative-{digest}"


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("query_key", "task", "side")),
        ("steps", pa.int64()),
        ("probability", pa.float64()),
        ("think", pa.bool_()),
        *(
            (name, pa.float64())
            for name in ("hit_discriminative", "hit_generative", "loss_discriminative", "loss_generative", "gain")
        ),
        *((name, pa.int64()) for name in ("tokens", "prompt_tokens", "query_length")),
        ("margin", pa.float64()),
        ("malformed", pa.bool_()),
        *((name, pa.string()) for name in ("query_text", "cot", "positive", "top1_discriminative", "top1_generative")),
        ("image_png", pa.binary()),
    ]
)


def _name(item: Item) -> str:
    return item.text or item.key


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


def _shown(outcomes: Sequence[QueryOutcome], think_N: np.ndarray) -> set[int]:
    """Queries whose image is kept: every kind of decision and every number of steps has its turn."""
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for i, o in enumerate(outcomes):
        kind = (bool(think_N[i]), o.hit_discriminative, o.hit_generative, o.pair.steps)
        by_kind.setdefault(kind, []).append(i)
    shown: set[int] = set()
    turn = 0
    while len(shown) < min(MAX_THUMBNAILS, len(outcomes)):
        for rows in by_kind.values():
            if turn < len(rows) and len(shown) < MAX_THUMBNAILS:
                shown.add(rows[turn])
        turn += 1
    return shown


def _thumbnail(item: Item) -> bytes | None:
    """The query's first image as PNG, at most THUMBNAIL_PIXELS a side."""
    image = next((m for m in item.media if m.kind == "image"), None)
    if image is None:
        return None
    picture = Image.fromarray(load_image(image, item.key))
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
