"""The contrastive half of the stage-1 loss: one InfoNCE per combination of embedding modes, and the distillation.

Shape letters: Q queries, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.errors import ConfigError
from twn_lightning.objectives.distillation import similarity_distillation
from twn_lightning.objectives.info_nce import InfoNCEOutput, info_nce
from twn_lightning.types import EmbeddingOutput


@dataclass
class CombinedContrastiveOutput:
    """The weighted sum of section 4 and its unweighted terms."""

    loss: Tensor
    terms: dict[str, InfoNCEOutput]
    """`discriminative`, `generative`, and `query_generative` / `candidate_generative` where their weight is not 0."""
    distillation: Tensor | None = None
    """Of the query e_g into the query e_d, unweighted; None where its weight is 0."""

    def log_values(self) -> dict[str, Tensor]:
        """Detached scalars, named `<term>/<quantity>`."""
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            values[f"{name}/loss"] = term.loss.detach()
            values[f"{name}/hit@1"] = term.hit_at_1
            values[f"{name}/effective_negatives"] = term.effective_negatives
            values[f"{name}/masked_share"] = term.masked_share
            if term.hard_negative_mass is not None:
                values[f"{name}/hard_negative_mass"] = term.hard_negative_mass
        return values


def combined_contrastive(
    queries: EmbeddingOutput,
    candidates: EmbeddingOutput,
    positive_Q: Tensor,
    query_hash_Q: Tensor,
    candidate_hash_C: Tensor,
    *,
    temperature: float,
    cross_query_generative: float = 1.0,
    cross_candidate_generative: float = 0.0,
    distill_weight: float = 0.0,
    margin: float | None = None,
    matryoshka_dims: Sequence[int] = (),
    candidate_is_negative_C: Tensor | None = None,
    candidate_has_cot_C: Tensor | None = None,
) -> CombinedContrastiveOutput:
    """`L_NCE(e_d) + L_NCE(e_g) + w_qc L_NCE(query e_g, candidate e_d) + w_cq L_NCE(query e_d, candidate e_g)`,
    and `w_distill KL(query e_g -> query e_d)` where that weight is not 0.

    A side that does not think has no generative embeddings; its e_g is then its e_d. Where candidates do think, hard
    negatives without a CoT stay out of the terms that read candidate e_g.

    Args:
        queries: Query embeddings (Q, D), unit norm; `discriminative_BD` is required.
        candidates: Candidate embeddings (C, D), unit norm; `discriminative_BD` is required.
        positive_Q: Row of each query's positive, int64 (Q,).
        query_hash_Q: Hash of each query's target, int64 (Q,).
        candidate_hash_C: Hash of each candidate, int64 (C,).
        temperature: Softmax temperature.
        cross_query_generative: w_qc; 1 for think sides = query, .25 for both.
        cross_candidate_generative: w_cq; 0 for think sides = query, .25 for both.
        distill_weight: Of `similarity_distillation` of the query e_g into the query e_d, over the candidate e_d.
        margin: See `info_nce`.
        matryoshka_dims: See `info_nce`.
        candidate_is_negative_C: Marks mined hard negatives, bool (C,).
        candidate_has_cot_C: Marks candidates with a CoT, bool (C,); only read where candidates think.

    Returns:
        `CombinedContrastiveOutput`.

    Raises:
        ConfigError: When a weighted term needs embeddings that do not exist, with the setting to change.
        ValueError: When one side has no discriminative or neither side has generative ones; and as `info_nce`.
        NumericalError: As `info_nce`.

    Relations:
        With no generative candidates the generative and the w_qc term are the same number, computed once; the sum is
        then `L_NCE(e_d) + (1 + w_qc) L_NCE(query e_g, candidate e_d)`.
    """
    query_d, query_g, candidate_d, candidate_g = _sides(
        queries, candidates, cross_query_generative, cross_candidate_generative, distill_weight
    )
    without_cot_C = None
    if candidates.generative_BD is not None and candidate_is_negative_C is not None and candidate_has_cot_C is not None:
        without_cot_C = candidate_is_negative_C & ~candidate_has_cot_C

    def contrast(query: Tensor, candidate: Tensor) -> InfoNCEOutput:
        return info_nce(
            query, candidate, positive_Q, query_hash_Q, candidate_hash_C, temperature, margin, matryoshka_dims,
            candidate_is_negative_C, without_cot_C if candidate is candidates.generative_BD else None,
        )  # fmt: skip

    terms = {"discriminative": contrast(query_d, candidate_d), "generative": contrast(query_g, candidate_g)}
    if cross_query_generative:
        terms["query_generative"] = (
            terms["generative"] if candidate_g is candidate_d else contrast(query_g, candidate_d)
        )
    if cross_candidate_generative:
        terms["candidate_generative"] = terms["generative"] if query_g is query_d else contrast(query_d, candidate_g)
    weights = {"query_generative": cross_query_generative, "candidate_generative": cross_candidate_generative}
    loss = torch.stack([weights.get(name, 1.0) * term.loss for name, term in terms.items()]).sum()
    if not distill_weight:
        return CombinedContrastiveOutput(loss, terms)
    distillation = similarity_distillation(query_d, query_g, candidate_d, temperature=temperature)
    return CombinedContrastiveOutput(loss + distill_weight * distillation, terms, distillation)


def _sides(
    queries: EmbeddingOutput,
    candidates: EmbeddingOutput,
    weight_qc: float,
    weight_cq: float,
    distill_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query_d, candidate_d = queries.discriminative_BD, candidates.discriminative_BD
    if query_d is None or candidate_d is None:
        raise ValueError("combined_contrastive needs discriminative embeddings of queries and candidates.")
    if queries.generative_BD is None and candidates.generative_BD is None:
        raise ValueError(
            "combined_contrastive got no generative embeddings on either side: encode the side that thinks "
            "(data.think_sides) in both modes, or call info_nce on the discriminative ones."
        )
    for side, output, key, weight in (
        ("query", queries, "cross_query_generative", weight_qc),
        ("query", queries, "distill_weight", distill_weight),
        ("candidate", candidates, "cross_candidate_generative", weight_cq),
    ):
        if weight and output.generative_BD is None:
            raise ConfigError(
                f"stage.{key} = {weight} weighs a term over {side} e_g, but the {side} side carries no generative "
                f"embeddings: set stage.{key}=0, or data.think_sides={side} or both."
            )
    query_g = query_d if queries.generative_BD is None else queries.generative_BD
    candidate_g = candidate_d if candidates.generative_BD is None else candidates.generative_BD
    return query_d, query_g, candidate_d, candidate_g
