"""Checks on what an encoder and a gate put out. Shape letters: N items, Q queries, D embedding width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twn_lightning import checks
from twn_lightning.evaluation.task_encoding import TaskSide
from twn_lightning.types import Side

SMALLEST_SPREAD = 1e-5
"""Below this mean cosine distance of two items a similarity is rounding."""
LARGEST_SAMPLE = 1024
"""About as many embeddings of a task are compared, spread evenly."""
LARGEST_UNCLOSED = 0.02
LARGEST_TIE_RATE = 0.01
FEWEST_DECISIONS = 20
"""Fewer inputs may well want the same decision."""


def check_embeddings(embedding_ND: Tensor | np.ndarray, what: str) -> None:
    """Report embeddings of different items that point the same way.

    Args:
        embedding_ND: unit vectors (N, D).
        what: whose they are, for the message, such as "task 'nano/route', queries".
    """
    stride = max(1, len(embedding_ND) // LARGEST_SAMPLE)
    vectors_ND = torch.as_tensor(np.asarray(embedding_ND[::stride])).double()
    count = len(vectors_ND)
    if count < 2:
        return
    # The sum of all cosines is the squared norm of the sum of the vectors; N of them are 1.
    mean_cosine = (float(vectors_ND.sum(0).square().sum()) - count) / (count * (count - 1))
    if 1 - mean_cosine < SMALLEST_SPREAD:
        checks.report(
            "embedding_collapse",
            f"{what}: the mean cosine of {count} embeddings is {mean_cosine:.7f}, so no candidate is nearer than "
            "another. Go back to an earlier checkpoint, and train with a lower stage.learning_rate or more negatives",
        )


def check_closed(malformed: int, thought: int, cap: int | None, what: str) -> None:
    """Report CoTs that did not end by themselves.

    Args:
        malformed: CoTs that reached the cap.
        thought: CoTs in all.
        cap: in tokens; None where it is not known.
        what: whose they are, for the message.
    """
    if thought and malformed > LARGEST_UNCLOSED * thought:
        limit = "their cap" if cap is None else f"data.max_new_tokens={cap}"
        checks.report(
            "unclosed_cots",
            f"{what}: {malformed} of {thought} CoTs did not end within {limit} and count as not thought. Raise the "
            "cap, or train the reasoning adapter longer",
        )


def check_ties(tie_rate: float, what: str) -> None:
    """Report queries whose right candidate has the score of a wrong one.

    Args:
        tie_rate: share of the queries.
        what: whose they are, for the message.
    """
    if tie_rate > LARGEST_TIE_RATE:
        checks.report(
            "tie_rate",
            f"{what}: {100 * tie_rate:.1f} % of the queries tie a right with a wrong candidate: the score depends on "
            "the tie rule (task.ties). Look for candidates that are listed twice, or compare in float32",
        )


def check_task(name: str, scores: Mapping[str, Any], sides: Mapping[Side, TaskSide]) -> None:
    """Report what makes a benchmark task's scores doubtful.

    Args:
        name: of the task.
        scores: its part of scores.json.
        sides: what was encoded.
    """
    for side, found in sides.items():
        what = f"task '{name}', {side.value} side"
        check_embeddings(found.embedding_ND, what)
        check_closed(int(found.malformed_N.sum()), int(found.think_N.sum()), None, what)
    check_ties(scores["guards"]["tie_rate"], f"task '{name}'")


def check_gate(probability_N: Tensor | np.ndarray, threshold: float, thinking_pays_N: Tensor | np.ndarray) -> None:
    """Report a gate that decides the same for every input although thinking pays for some only.

    Args:
        probability_N: of thinking (N,).
        threshold: think iff the probability is above it.
        thinking_pays_N: the hard labels (N,).
    """
    probability_N, pays_N = np.asarray(probability_N), np.asarray(thinking_pays_N).astype(bool)
    think_N = probability_N > threshold
    if len(think_N) < FEWEST_DECISIONS or think_N.any() != think_N.all() or pays_N.all() or not pays_N.any():
        return
    checks.report(
        "gate_saturation",
        f"the gate {'thinks' if think_N.all() else 'does not think'} on all {len(think_N)} queries (probabilities "
        f"{probability_N.min():.3f} to {probability_N.max():.3f}, threshold {threshold:.3f}), but thinking pays on "
        f"{int(pays_N.sum())} of them. Set gate.threshold or gate.calibration, change gate.price, or train the gate "
        "longer",
    )
