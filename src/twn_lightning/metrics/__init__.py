"""Metrics over plain arrays: ranking, routing, and their uncertainty."""

from twn_lightning.metrics.ranking import hit_at_k, mrr_at_k, ndcg_linear_at_k, ranks
from twn_lightning.metrics.retrieval import per_query_metrics, ranking_metrics
from twn_lightning.metrics.routing import (
    Calibration,
    CalibrationBin,
    QualityTokenCurve,
    auroc,
    calibration,
    gate_scores,
    oracle_gap,
    quality_token_curve,
    think_at_equal_tokens,
    think_rate,
    tokens_per_query,
    verdicts,
)
from twn_lightning.metrics.scoring import RankedCandidates, rank_candidates, score_embeddings
from twn_lightning.metrics.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_over_seeds,
    paired_bootstrap_difference,
    paired_bootstrap_over_seeds,
    student_interval,
)

__all__ = [
    "Calibration",
    "CalibrationBin",
    "Interval",
    "QualityTokenCurve",
    "RankedCandidates",
    "auroc",
    "bootstrap_mean",
    "bootstrap_over_seeds",
    "calibration",
    "gate_scores",
    "hit_at_k",
    "mrr_at_k",
    "ndcg_linear_at_k",
    "oracle_gap",
    "paired_bootstrap_difference",
    "paired_bootstrap_over_seeds",
    "per_query_metrics",
    "quality_token_curve",
    "rank_candidates",
    "ranking_metrics",
    "ranks",
    "score_embeddings",
    "student_interval",
    "think_at_equal_tokens",
    "think_rate",
    "tokens_per_query",
    "verdicts",
]
