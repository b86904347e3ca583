"""Adaptive evaluation: encode once, decode once, score every router on the recorded outcomes."""

from twn_lightning.evaluation.outcomes import QueryOutcome, task_outcomes
from twn_lightning.evaluation.suite import Evaluation, evaluate_source

__all__ = ["Evaluation", "QueryOutcome", "evaluate_source", "task_outcomes"]
