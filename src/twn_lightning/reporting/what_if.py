"""Recorded decisions under another threshold or another price of thinking; no model runs again.

Shape letters: N queries, P operating points.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from twn_lightning.gate import thinking_gain
from twn_lightning.metrics import QualityTokenCurve, quality_token_curve
from twn_lightning.reporting.decisions import VERDICTS, Decisions
from twn_lightning.reporting.tables import TextTable, percent

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class OperatingPoint:
    """What the gate would have scored at one threshold.

    Args:
        threshold: the gate thinks where its probability is above it.
        quality: mean hit@1, or the task's graded metric.
        tokens_per_query: mean CoT tokens.
        think_rate: share of queries that think.
        verdicts: number of queries of each key of `VERDICTS`.
    """

    threshold: float
    quality: float
    tokens_per_query: float
    think_rate: float
    verdicts: dict[str, int]


def at_threshold(decisions: Decisions, threshold: float) -> OperatingPoint:
    """Decide again at a threshold.

    Args:
        decisions: N queries.
        threshold: the gate thinks where its probability is above it.

    Relations:
        At the run's own threshold this is the score of the router `adaptive`.
    """
    moved = replace(decisions, think_N=decisions.probability_N > threshold)
    counts = Counter(moved.verdicts().tolist())
    return OperatingPoint(
        threshold=threshold,
        quality=float(moved.hit_adaptive_N.mean()),
        tokens_per_query=float(np.where(moved.think_N, moved.tokens_N, 0.0).mean()),
        think_rate=float(moved.think_N.mean()),
        verdicts={name: counts[name] for name in VERDICTS},
    )


def threshold_table(points: list[OperatingPoint]) -> TextTable:
    """Threshold x (quality, tokens a query, think rate, queries of each verdict)."""
    rows = [
        [
            f"{point.threshold:.3f}",
            percent(point.quality),
            f"{point.tokens_per_query:.1f}",
            percent(point.think_rate, 0),
            *(f"{count:,}" for count in point.verdicts.values()),
        ]
        for point in points
    ]
    header = ["Threshold", "Quality", "Tokens/query", "Think rate", *VERDICTS]
    return TextTable("At other thresholds", header, [row[0] for row in rows], rows)


def gain_at_price(table: pa.Table, price: float) -> np.ndarray:
    """What thinking would have gained at another price, (N,) float64 nats.

    Args:
        table: the gate decisions, with the losses of both modes.
        price: nats that a CoT of average length must earn, as `gate.price`.

    Relations:
        At the run's own price this is the column `gain`.
    """
    loss_discriminative_N, loss_generative_N, tokens_N = (
        torch.tensor(table.column(name).to_pylist()) for name in ("loss_discriminative", "loss_generative", "tokens")
    )
    gain_N = thinking_gain(loss_discriminative_N, loss_generative_N, tokens_N, price=price)
    return gain_N.double().numpy()


def net_gain_curve(decisions: Decisions, gain_N: np.ndarray) -> QualityTokenCurve:
    """Mean gain a query over the gate's thresholds, from never (0 nats) to always; its peak is the best threshold.

    Args:
        decisions: N queries.
        gain_N: what thinking gains at some price, as from `gain_at_price`.

    Returns:
        P operating points, with the mean gain in nats as `quality`.
    """
    return quality_token_curve(decisions.probability_N, np.zeros(len(decisions)), gain_N, decisions.tokens_N)
