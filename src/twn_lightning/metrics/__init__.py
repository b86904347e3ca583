"""Metrics over plain arrays: ranking, routing, and their uncertainty."""

from twn_lightning.metrics.ranking import hit_at_k, mrr_at_k, ndcg_linear_at_k, ranks
from twn_lightning.metrics.routing import (
    Calibration,
    CalibrationBin,
    QualityTokenCurve,
    auroc,
    calibration,
    gate_scores,
    oracle_gap,
    quality_token_curve,
    think_rate,
    tokens_per_query,
)
from twn_lightning.metrics.statistics import Interval, bootstrap_mean, paired_bootstrap_difference

__all__ = [
    "Calibration",
    "CalibrationBin",
    "Interval",
    "QualityTokenCurve",
    "auroc",
    "bootstrap_mean",
    "calibration",
    "gate_scores",
    "hit_at_k",
    "mrr_at_k",
    "ndcg_linear_at_k",
    "oracle_gap",
    "paired_bootstrap_difference",
    "quality_token_curve",
    "ranks",
    "think_rate",
    "tokens_per_query",
]
