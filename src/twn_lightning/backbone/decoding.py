"""Batched CoT decoding over the cache of pass R.

Stops on text: a CoT ends with the token that completes the string `</answer>`, which may be several tokens and may
merge with neighbours. Rows that are done leave the batch. The last token is run too, so it is in the cache, and the
state that comes back equals a teacher-forced one.

Shape letters: B rows, A rows still decoding, L padded prompt length, T CoT tokens so far, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.early_exit import ExitRule, ExitWatch
from twn_lightning.backbone.interface import CacheView, KeyValues, ReasonerState
from twn_lightning.backbone.processor import ANSWER_CLOSE
from twn_lightning.types import CotBatch

COMPACT_BELOW = 0.75
"""Drop finished rows once fewer than this share is still decoding: dropping copies the cache."""


@dataclass
class Decoded:
    """Generated CoTs with the reasoner's state grown over them."""

    cots: CotBatch
    log_probs_BT: Tensor
    """fp32 log-probabilities of the tokens at the sampling temperature (1 for greedy), 0 at padding. The ban on
    visual tokens is not in them, so they equal the teacher-forced ones."""
    state: ReasonerState
    exited_B: Tensor
    """True where the exit rule ended the CoT; it is not closed then."""


@torch.no_grad()
def decode_cots(
    backbone: DualLoRABackbone,
    state: ReasonerState,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    completions: int = 1,
    generator: torch.Generator | None = None,
    exit_rule: ExitRule | None = None,
) -> Decoded:
    """Generate a CoT for each row of a prefilled state.

    Args:
        backbone: decodes under its reasoning adapter, or whatever adapter it has pinned as the reasoner.
        state: from `backbone.reason(prompts)`, without CoTs.
        max_new_tokens: the cap; a CoT that has not closed by then has `closed_B` False.
        temperature: 0 is greedy.
        completions: CoTs per row; rows are repeated prompt-major.
        generator: random numbers for sampling.
        exit_rule: when to leave a CoT early; never, by default.

    Returns:
        CoTs (rows * completions), their log-probabilities, and the grown state.
    """
    if completions > 1:
        state = state.select([r for r in range(len(state)) for _ in range(completions)])
    run = _Run(backbone, state, max_new_tokens)
    watch = None if exit_rule is None else ExitWatch(backbone, exit_rule, state)
    hidden_AD = state.last_hidden_BD
    for step in range(max_new_tokens):
        logits_AV = backbone("logits", hidden_BD=hidden_AD)["logits"].float()
        ids_A, log_probs_A = _choose(logits_AV, run.banned, temperature, generator)
        run.accept(step, ids_A, log_probs_A)
        hidden_AD = run.advance(step)
        if watch is not None and (step + 1) % watch.rule.stride == 0 and step + 1 < max_new_tokens:
            run.leave(watch.leaves(run.state_after(step), run.rows_A))
        if not run.any_rank_running():
            break
        hidden_AD = run.drop_finished(hidden_AD)
    return run.finish()


def _choose(
    logits_AV: Tensor, banned: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Next tokens (A,) and their log-probabilities (A,)."""
    if temperature > 0:
        logits_AV = logits_AV / temperature
    log_probs_AV = logits_AV.log_softmax(-1)
    allowed = log_probs_AV.index_fill(-1, banned, -torch.inf)
    if temperature > 0:
        ids_A = torch.multinomial(allowed.exp(), 1, generator=generator)[:, 0]
    else:
        ids_A = allowed.argmax(-1)
    return ids_A, log_probs_AV.gather(1, ids_A[:, None])[:, 0]


class _Run:
    """The moving parts of one decoding run: which rows are left, their buffers, and what has been written."""

    def __init__(self, backbone: DualLoRABackbone, state: ReasonerState, cap: int):
        rows, length = state.prompt_mask_BL.shape
        device = state.prompt_mask_BL.device
        self.backbone, self.state, self.cap, self.length = backbone, state, cap, length
        self.stop = StopText.of(backbone.processor.tokenizer, backbone.shape.vocabulary)
        self.kinds_V = self.stop.kinds_V.to(device)
        visual = [backbone.processor.image_id, backbone.processor.video_id]
        self.banned = torch.tensor([i for i in visual if i is not None], dtype=torch.long, device=device)
        self.ids_BT = torch.full((rows, cap), backbone.processor.pad_id, dtype=torch.long, device=device)
        self.mask_BT = torch.zeros(rows, cap, dtype=torch.long, device=device)
        self.log_probs_BT = torch.zeros(rows, cap, device=device)
        self.closed_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self.exited_B = torch.zeros_like(self.closed_B)
        self.rows_A = torch.arange(rows, device=device)
        self.running_A = torch.ones(rows, dtype=torch.bool, device=device)
        self.cache = GrowingCache(state.layers, cap)
        self.readable_AS = torch.cat(
            [state.prompt_mask_BL.bool(), torch.ones_like(self.mask_BT, dtype=torch.bool)], dim=1
        )
        self.ends_A = state.prompt_end_B
        self.parked: list[tuple[Tensor, KeyValues]] = []

    def accept(self, step: int, ids_A: Tensor, log_probs_A: Tensor) -> None:
        """Write the chosen tokens of running rows; note which rows end with them."""
        ended_A = ids_A == self.backbone.processor.eot_id
        written_A = self.running_A & ~ended_A
        rows = self.rows_A[written_A]
        self.ids_BT[rows, step] = ids_A[written_A]
        self.mask_BT[rows, step] = 1
        self.log_probs_BT[rows, step] = log_probs_A[written_A]
        closes_A = self.kinds_V[ids_A] == StopText.ALWAYS
        for i in (written_A & (self.kinds_V[ids_A] == StopText.PERHAPS)).nonzero()[:, 0].tolist():
            row = self.rows_A[i]
            closes_A[i] = self.stop.completed_by(
                self.ids_BT[row, max(0, step + 1 - self.stop.window) : step + 1].tolist()
            )
        done_A = self.running_A & (ended_A | closes_A)
        self.closed_B[self.rows_A[done_A]] = True
        self.running_A = self.running_A & ~done_A

    def advance(self, step: int) -> Tensor:
        """Run the newest tokens (a row that ends with this one included) and return the hidden states (A, D)."""
        found = self.backbone(
            "step",
            ids_B=self.ids_BT[self.rows_A, step],
            positions_B=self.ends_A + step,
            mask_BS=self.readable_AS[:, : self.length + step + 1],
            cache=self.cache,
        )
        self.cache.used += 1
        hidden: Tensor = found["hidden"]
        return hidden

    def state_after(self, step: int) -> ReasonerState:
        """The rows still in the run with their CoTs up to a step; keys and values are a view of the cache."""
        rows = self.rows_A.tolist()
        cots = CotBatch(self.ids_BT[:, : step + 1], self.mask_BT[:, : step + 1], self.closed_B).select(rows)
        return ReasonerState(
            layers=self.cache.columns(slice(None)),
            prompt_mask_BL=self.state.prompt_mask_BL[self.rows_A],
            cot_mask_BT=cots.mask_BT,
            prompt_end_B=self.ends_A,
            readable_end_B=self.ends_A + cots.lengths_B,
            last_hidden_BD=self.state.last_hidden_BD[self.rows_A],
            cot_logits_BTV=None,
            prompts=self.state.prompts.select(rows),
            cots=cots,
        )

    def leave(self, leaves_A: Tensor) -> None:
        """End the CoTs of some running rows where they are."""
        self.exited_B[self.rows_A[leaves_A & self.running_A]] = True
        self.running_A = self.running_A & ~leaves_A

    def any_rank_running(self) -> bool:
        """Whether a row is left. Sharded ranks gather weights together at each step, so all go on until all end."""
        return any_sharded_rank(self.backbone, self.running_A.any())

    def drop_finished(self, hidden_AD: Tensor) -> Tensor:
        """Park the caches of rows that are done, once there are enough of them to be worth the copy.

        A sharded rank without running rows keeps what it has: its steps, whose tokens nobody reads, serve the others.
        """
        running = int(self.running_A.sum())
        if running == 0 or running >= COMPACT_BELOW * len(self.running_A):
            return hidden_AD
        done_A, kept_A = (~self.running_A).nonzero()[:, 0], self.running_A.nonzero()[:, 0]
        self.parked.append((self.rows_A[done_A], self.cache.columns(done_A)))
        self.rows_A, self.ends_A = self.rows_A[kept_A], self.ends_A[kept_A]
        self.readable_AS = self.readable_AS[kept_A]
        self.running_A = self.running_A[kept_A]
        self.cache.keep(kept_A)
        return hidden_AD[kept_A]

    def finish(self) -> Decoded:
        """Put the parked and the last rows back into their order."""
        self.parked.append((self.rows_A, self.cache.columns(slice(None))))
        width = int(self.mask_BT.sum(-1).max()) if self.cap else 0
        cots = CotBatch(self.ids_BT[:, :width].contiguous(), self.mask_BT[:, :width].contiguous(), self.closed_B)
        layers = []
        for index, (key, value) in enumerate(self.state.layers):
            pair = []
            for part, prompt in enumerate((key, value)):
                whole = prompt.new_zeros(*prompt.shape[:2], self.length + width, prompt.shape[3])
                for rows, parked in self.parked:
                    columns = parked[index][part][:, :, : self.length + width]
                    whole[rows, :, : columns.shape[2]] = columns
                pair.append(whole)
            layers.append((pair[0], pair[1]))
        state = replace(
            self.state,
            layers=layers,
            cot_mask_BT=cots.mask_BT,
            readable_end_B=self.state.prompt_end_B + cots.lengths_B,
            cot_logits_BTV=None,
            cots=cots,
        )
        return Decoded(cots, self.log_probs_BT[:, :width].contiguous(), state, self.exited_B)


def any_sharded_rank(backbone: DualLoRABackbone, flag: Tensor) -> bool:
    """Whether a flag is set here or, under sharding, on any rank: what one runs, all must run."""
    if isinstance(backbone, FSDPModule) and dist.is_initialized():
        flag = flag.long()
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


class GrowingCache(CacheView):
    """A cache with room for the tokens to come: a step writes one column instead of copying all of them."""

    def __init__(self, layers: KeyValues, room: int):
        super().__init__()
        self.used = layers[0][0].shape[2]
        self.buffers = [(self._widen(k, room), self._widen(v, room)) for k, v in layers]

    @staticmethod
    def _widen(tensor: Tensor, room: int) -> Tensor:
        rows, heads, columns, dim = tensor.shape
        buffer = tensor.new_empty(rows, heads, columns + room, dim)
        buffer[:, :, :columns] = tensor
        return buffer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.used

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.used + key.shape[2]
        keys, values = self.buffers[layer_idx]
        keys[:, :, self.used : end] = key
        values[:, :, self.used : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def columns(self, rows: Tensor | slice) -> KeyValues:
        """The filled columns of some rows."""
        return [(k[rows, :, : self.used], v[rows, :, : self.used]) for k, v in self.buffers]

    def keep(self, rows: Tensor) -> None:
        self.buffers = [(k[rows], v[rows]) for k, v in self.buffers]


class StopText:
    """Which tokens can complete `</answer>`: known per token id, so only few rows need their text looked at."""

    NEVER, PERHAPS, ALWAYS = 0, 1, 2

    def __init__(self, tokenizer: Any, vocabulary: int):
        self.texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
        self.texts += [""] * (vocabulary - len(self.texts))
        self.kinds_V = torch.tensor([self._kind(text) for text in self.texts], dtype=torch.uint8)
        self.window = len(ANSWER_CLOSE)

    @classmethod
    def of(cls, tokenizer: Any, vocabulary: int) -> StopText:
        return _stop_text(tokenizer, vocabulary)

    @classmethod
    def _kind(cls, text: str) -> int:
        if ANSWER_CLOSE in text:
            return cls.ALWAYS
        completes = any(text.startswith(ANSWER_CLOSE[-n:]) for n in range(1, len(ANSWER_CLOSE)))
        return cls.PERHAPS if completes else cls.NEVER

    def completed_by(self, ids: list[int]) -> bool:
        """Whether the text of the last tokens contains the tag; it did not before the newest one."""
        return ANSWER_CLOSE in "".join(self.texts[i] for i in ids)


@lru_cache(maxsize=8)
def _stop_text(tokenizer: Any, vocabulary: int) -> StopText:
    return StopText(tokenizer, vocabulary)
