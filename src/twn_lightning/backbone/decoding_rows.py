"""The rows of a decoding run: what is kept of each, and how a token is chosen and written, all on the device.

Shape letters: B rows of the run, A rows still in the batch, S columns (prompt, then CoT), V vocabulary, D hidden size,
M match lengths of the stop text.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.stop_text import StopText


@dataclass
class Rows:
    """One entry per row in every tensor. Written in place, so that a recorded step finds them where they were."""

    numbers_A: Tensor
    """The row's number in the run, int64."""
    running_A: Tensor
    closed_A: Tensor
    exited_A: Tensor
    matched_A: Tensor
    """How much of the stop text the CoT ends with, int64."""
    lengths_A: Tensor
    """CoT tokens so far, int64."""
    positions_A: Tensor
    """The next token's mRoPE position, int64."""
    hidden_AD: Tensor
    """Hidden state that predicts the next token."""
    ids_AS: Tensor
    log_probs_AS: Tensor
    """fp32."""
    readable_AS: Tensor
    """True at the columns that the next token may read."""

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def head(self, count: int) -> Rows:
        """A view of the first rows."""
        return Rows(*(tensor[:count] for tensor in self.tensors()))

    def select(self, index_A: Tensor) -> Rows:
        """A copy of some rows."""
        return Rows(*(tensor[index_A] for tensor in self.tensors()))

    def move_to_front(self, index_A: Tensor) -> None:
        """Overwrite the first rows with some rows."""
        for tensor in self.tensors():
            tensor[: len(index_A)] = tensor[index_A]


@dataclass
class TokenRules:
    """How tokens are chosen, and which of them end a CoT. What was recorded with them is valid while they live."""

    temperature: float
    """0 is greedy."""
    banned: Tensor
    """Ids that are never chosen."""
    end_of_turn: int
    padding: int
    next_match_MV: Tensor
    """Transitions of the stop text."""

    @classmethod
    def of(cls, backbone: DualLoRABackbone, temperature: float) -> TokenRules:
        processor, device = backbone.processor, backbone.device
        visual = [i for i in (processor.image_id, processor.video_id) if i is not None]
        return cls(
            temperature,
            torch.tensor(visual, dtype=torch.long, device=device),
            processor.eot_id,
            processor.pad_id,
            StopText.of(processor.tokenizer, backbone.shape.vocabulary).next_MV.to(device),
        )

    def choose(self, logits_AV: Tensor, rows: Rows, noise_BV: Tensor | None) -> tuple[Tensor, Tensor]:
        """Next tokens (A,) and their log-probabilities (A,), which the ban is not in.

        Args:
            logits_AV: fp32.
            rows: the rows they belong to.
            noise_BV: exponential random numbers for each row of the run, where the temperature is not 0. The token
                with the largest probability / noise is a sample; it does not depend on which rows are still there.
        """
        if self.temperature > 0:
            logits_AV = logits_AV / self.temperature
        log_probs_AV = logits_AV.log_softmax(-1)
        scores_AV = log_probs_AV.index_fill(-1, self.banned, -torch.inf)
        if noise_BV is not None:
            scores_AV = scores_AV.exp() / noise_BV[rows.numbers_A]
        ids_A = scores_AV.argmax(-1)
        return ids_A, log_probs_AV.gather(1, ids_A[:, None])[:, 0]

    def write(self, rows: Rows, ids_A: Tensor, log_probs_A: Tensor, column: Tensor) -> Tensor:
        """Write the tokens of running rows and note which rows end with them.

        Args:
            rows: changed in place.
            ids_A: the chosen tokens.
            log_probs_A: their log-probabilities.
            column: where they go, int64 (1,).

        Returns:
            The ids written, padding where a row had ended; int64 (A,).
        """
        ended_A = ids_A == self.end_of_turn
        written_A = rows.running_A & ~ended_A
        ids_A = ids_A.masked_fill(~written_A, self.padding)
        rows.ids_AS.index_copy_(1, column, ids_A[:, None])
        rows.log_probs_AS.index_copy_(1, column, log_probs_A.masked_fill(~written_A, 0.0)[:, None])
        rows.readable_AS.index_fill_(1, column, True)
        rows.lengths_A.add_(written_A)
        matched_A = torch.where(written_A, self.next_match_MV[rows.matched_A, ids_A], rows.matched_A)
        rows.matched_A.copy_(matched_A)
        done_A = rows.running_A & (ended_A | (matched_A == StopText.CLOSED))
        rows.closed_A.logical_or_(done_A)
        rows.running_A.logical_and_(~done_A)
        return ids_A
