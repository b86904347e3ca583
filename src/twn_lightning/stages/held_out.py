"""What a stage's current weights do with the validation pairs, with CoTs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.data.corpus import COT_FORMAT
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.data.sources import Split
from twn_lightning.evaluation.outcomes import QueryOutcome
from twn_lightning.evaluation.suite import encode_outcomes
from twn_lightning.settings import Settings
from twn_lightning.stages.cot_language import language_values
from twn_lightning.strategy import gather_objects, interleave, rank, world_size
from twn_lightning.types import Pair


@dataclass(frozen=True)
class HeldOut:
    """One query under both modes, small enough to gather from all ranks."""

    hit_discriminative: float
    hit_generative: float
    tokens: int
    malformed: bool
    cot: str
    answered: float
    """1 where the generated answer is the teacher's, 0 where not, NaN without a teacher."""


def held_out_values(backbone: DualLoRABackbone, data: TWNDataModule, settings: Settings) -> dict[str, float]:
    """Validation values from greedy, self-generated CoTs: what the model will do, not what a teacher would have.

    Returns:
        `val/hit@1_discriminative`, `val/hit@1_generative`, `val/answer_accuracy` (NaN where no pair has a teacher's
        CoT), `val/malformed_cot_rate`, `val/cot_tokens`, and those of `language_values`; equal on every rank.
    """
    records = held_out(backbone, data, settings, "val")
    malformed = float(np.mean([r.malformed for r in records]))
    answered = [r.answered for r in records if not np.isnan(r.answered)]
    return {
        "val/hit@1_discriminative": float(np.mean([r.hit_discriminative for r in records])),
        "val/hit@1_generative": float(np.mean([r.hit_generative for r in records])),
        "val/answer_accuracy": float(np.mean(answered)) if answered else float("nan"),
        "val/malformed_cot_rate": malformed,
        "val/cot_tokens": float(np.mean([r.tokens for r in records])),
        **language_values([r.cot for r in records]),
    }


def held_out(backbone: DualLoRABackbone, data: TWNDataModule, settings: Settings, split: Split) -> list[HeldOut]:
    """Records of a split's pairs in their order; ranks share the work."""
    pairs = data.pairs(split)
    mine = [pairs[row] for row in range(rank(), len(pairs), world_size())]
    outcomes = outcomes_of(backbone, data, settings, split, mine) if mine else []
    return interleave(gather_objects([_record(outcome) for outcome in outcomes]))


def outcomes_of(
    backbone: DualLoRABackbone, data: TWNDataModule, settings: Settings, split: Split, pairs: Sequence[Pair]
) -> list[QueryOutcome]:
    """Each pair against its task's whole candidate corpus, under both modes."""
    return encode_outcomes(
        backbone,
        data.source,
        split,
        pairs,
        gate=None,
        gate_settings=settings.gate,
        batch_size=settings.evaluation.batch_size,
        max_new_tokens=settings.data.max_new_tokens,
    )


def _record(outcome: QueryOutcome) -> HeldOut:
    return HeldOut(
        outcome.hit_discriminative,
        outcome.hit_generative,
        outcome.tokens,
        outcome.malformed,
        outcome.cot,
        _answered(outcome.cot, outcome.pair.query.cot),
    )


def _answered(cot: str, teacher: str | None) -> float:
    wanted = None if teacher is None else COT_FORMAT.search(teacher)
    if wanted is None:
        return float("nan")
    given = COT_FORMAT.search(cot)
    return float(given is not None and given["answer"].split() == wanted["answer"].split())
