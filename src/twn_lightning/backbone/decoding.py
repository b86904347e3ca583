"""Batched CoT decoding over the cache of pass R.

Stops on text: a CoT ends with the token that completes the string `</answer>`, which may be several tokens and may
merge with neighbours. Rows that are done leave the batch. The last token is run too, so it is in the cache, and the
state that comes back equals a teacher-forced one. `decoding_engine` says what runs the steps.

Shape letters: B rows, A rows in the batch, L padded prompt length, T CoT tokens so far, V vocabulary, P prompts, G
completions of each, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from twn_lightning.backbone.decoding_engine import DecodingEngine, engine_for
from twn_lightning.backbone.decoding_rows import Rows, TokenRules
from twn_lightning.backbone.decoding_steps import ColumnCache
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.early_exit import ExitRule, ExitWatch
from twn_lightning.backbone.interface import KeyValues, ReasonerState
from twn_lightning.backbone.step_model import PlainModel, StepModel
from twn_lightning.strategy import rank, runs_in_lockstep, world_size
from twn_lightning.types import CotBatch


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
        generator: random numbers for sampling. A row's sample does not depend on when other rows end, nor on the number
            of ranks: given equally seeded generators, each draws for the rows of all. Rank r of W is taken to hold the
            prompts r, r + W, r + 2 W, ... of one batch, and every rank equally many.
        exit_rule: when to leave a CoT early; never, by default.

    Returns:
        CoTs (rows * completions), their log-probabilities, and the grown state.
    """
    if completions > 1:
        state = state.select([r for r in range(len(state)) for _ in range(completions)])
    engine = engine_for(backbone)
    run = _Run(backbone, engine, state, max_new_tokens, engine.rules(backbone, temperature), completions, generator)
    watch = None if exit_rule is None else ExitWatch(backbone, exit_rule, state)
    for tokens in range(1, max_new_tokens + 1):
        run.next_token()
        if watch is not None and tokens % watch.rule.stride == 0 and tokens < max_new_tokens:
            run.leave(watch.leaves(run.state_so_far(), run.live.numbers_A))
        if tokens % engine.steps.check_every == 0:
            if not run.any_rank_running():
                break
            run.drop_finished()
    decoded = run.finish()
    engine.end_run()
    return decoded


class _Run:
    """One decoding run: rows in the batch, of which the first `live` count, and those that have left it."""

    def __init__(
        self,
        backbone: DualLoRABackbone,
        engine: DecodingEngine,
        state: ReasonerState,
        cap: int,
        rules: TokenRules,
        completions: int,
        generator: torch.Generator | None,
    ):
        self.backbone, self.engine, self.state = backbone, engine, state
        self.rules, self.completions, self.generator = rules, completions, generator
        self.size, self.length = state.prompt_mask_BL.shape
        self.used = self.length
        """Filled columns of the cache."""
        self.buffers = engine.buffers(state, cap)
        self.buffers.load(state, rules.padding)
        self.noise_BV = self.buffers.noise(backbone.shape.vocabulary) if rules.temperature > 0 else None
        self.parked: list[tuple[Rows, KeyValues]] = []
        self._keep(self.size)

    def _keep(self, live: int) -> None:
        """Go on with the first rows of the buffers; those that only fill up the batch do not run."""
        rows = self.engine.steps.rows(live)
        self.rows, self.live = self.buffers.rows.head(rows), self.buffers.rows.head(live)
        self.rows.running_A[live:] = False
        self.cache = self.buffers.cache.head(rows)

    def next_token(self) -> None:
        """Choose and write a token for every running row, and run it; a row that ends with it is included."""
        if self.noise_BV is not None:
            self._draw(self.noise_BV[: self.size])
        columns = self.engine.steps.columns(self.used + 1)
        step = partial(_step, self.engine.model, self.rules, self.rows, self.cache, columns, self.noise_BV)
        self.engine.steps.run((len(self.rows.numbers_A), columns, self.rules.temperature), step)
        self.used += 1

    def _draw(self, noise_BV: Tensor) -> None:
        """Exponential random numbers for this rank's rows, out of those for the rows of all ranks."""
        if world_size() == 1:
            noise_BV.exponential_(generator=self.generator)
            return
        own_PGV = noise_BV.view(-1, self.completions, noise_BV.shape[1])
        prompts, *shape = own_PGV.shape
        all_PWGV = noise_BV.new_empty(prompts, world_size(), *shape).exponential_(generator=self.generator)
        own_PGV.copy_(all_PWGV[:, rank()])

    def state_so_far(self) -> ReasonerState:
        """The live rows with their CoTs up to now; keys and values are a view of the cache."""
        numbers_A, live = self.live.numbers_A, len(self.live.numbers_A)
        cots = CotBatch(*self._written(self.live, self.used - self.length)[:2], self.live.closed_A.clone())
        ends_A = self.state.prompt_end_B[numbers_A]
        return ReasonerState(
            layers=[(k[:live, :, : self.used], v[:live, :, : self.used]) for k, v in self.cache.layers],
            prompt_mask_BL=self.state.prompt_mask_BL[numbers_A],
            cot_mask_BT=cots.mask_BT,
            prompt_end_B=ends_A,
            readable_end_B=ends_A + cots.lengths_B,
            last_hidden_BD=self.state.last_hidden_BD[numbers_A],
            cot_logits_BTV=None,
            prompts=self.state.prompts.select(numbers_A.tolist()),
            cots=cots,
        )

    def _written(self, rows: Rows, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and log-probabilities of the first CoT columns, each (A, width)."""
        columns = slice(self.length, self.length + width)
        steps = torch.arange(width, device=rows.lengths_A.device)
        mask_AT = (steps < rows.lengths_A[:, None]).long()
        return rows.ids_AS[:, columns], mask_AT, rows.log_probs_AS[:, columns]

    def leave(self, leaves_A: Tensor) -> None:
        """End the CoTs of some live rows where they are."""
        self.live.exited_A.logical_or_(leaves_A & self.live.running_A)
        self.live.running_A.logical_and_(~leaves_A)

    def any_rank_running(self) -> bool:
        """Whether a row is left. Ranks in lockstep gather weights together at each step: all go on until all end."""
        return any_sharded_rank(self.backbone, self.live.running_A.any())

    def drop_finished(self) -> None:
        """Park the caches of rows that are done, once there are enough of them to be worth the copy.

        A sharded rank without running rows keeps what it has: its steps, whose tokens nobody reads, serve the others.
        """
        running_A = self.live.running_A
        count = int(running_A.sum())
        if count == 0 or not self.engine.steps.worth_dropping(count, len(self.rows.numbers_A)):
            return
        done_A, kept_A = (~running_A).nonzero()[:, 0], running_A.nonzero()[:, 0]
        self.parked.append((self.live.select(done_A), self.cache.copy_of(done_A, self.used)))
        self.buffers.rows.move_to_front(kept_A)
        self.buffers.cache.move_to_front(kept_A, self.used)
        self._keep(count)

    def finish(self) -> Decoded:
        """Put the parked and the last rows back into their order."""
        live = len(self.live.numbers_A)
        pieces = [*self.parked, (self.live, [(k[:live], v[:live]) for k, v in self.cache.layers])]
        order_B = torch.cat([rows.numbers_A for rows, _ in pieces]).argsort()
        width = max(int(rows.lengths_A.max()) for rows, _ in pieces)
        written = [self._written(rows, width) for rows, _ in pieces]
        ids_BT, mask_BT, log_probs_BT = (torch.cat(parts)[order_B] for parts in zip(*written, strict=True))
        closed_B, exited_B = (
            torch.cat([flags(rows) for rows, _ in pieces])[order_B]
            for flags in (lambda rows: rows.closed_A, lambda rows: rows.exited_A)
        )
        cots = CotBatch(ids_BT, mask_BT, closed_B)
        state = replace(
            self.state,
            layers=self._layers(pieces, self.length + width),
            cot_mask_BT=cots.mask_BT,
            readable_end_B=self.state.prompt_end_B + cots.lengths_B,
            cot_logits_BTV=None,
            cots=cots,
        )
        return Decoded(cots, log_probs_BT, state, exited_B)

    def _layers(self, pieces: list[tuple[Rows, KeyValues]], columns: int) -> KeyValues:
        """Keys and values of all rows, in tensors of their own: the buffers serve the next run."""
        layers = []
        for index, pair in enumerate(self.state.layers):
            whole = tuple(t.new_zeros(*t.shape[:2], columns, t.shape[3]) for t in pair)
            for rows, parked in pieces:
                for target, source in zip(whole, parked[index], strict=True):
                    source = source[:, :, :columns]
                    target[rows.numbers_A, :, : source.shape[2]] = source.to(target.dtype)
            layers.append((whole[0], whole[1]))
        return layers


def _step(
    model: PlainModel | StepModel,
    rules: TokenRules,
    rows: Rows,
    cache: ColumnCache,
    columns: int,
    noise_BV: Tensor | None,
) -> None:
    """One token per row. Operations on tensors that outlive the run, all in place: what a recording repeats."""
    cache.visible = columns
    ids_A, log_probs_A = rules.choose(model.logits(rows.hidden_AD).float(), rows, noise_BV)
    ids_A = rules.write(rows, ids_A, log_probs_A, cache.column)
    rows.hidden_AD.copy_(model.step(ids_A, rows.positions_A, rows.readable_AS[:, :columns], cache))
    rows.positions_A.add_(1)
    cache.column.add_(1)


def any_sharded_rank(backbone: DualLoRABackbone, flag: Tensor) -> bool:
    """Whether a flag is set here or, where ranks run in lockstep, on any rank: what one runs, all must run."""
    if runs_in_lockstep(backbone):
        flag = flag.long()
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
