"""What the embedder sees of the reasoner: the state pass R leaves behind, the detach, and the masks of pass E.

Shape letters: B rows, L padded prompt length, T padded CoT length, K queries, M query tokens of one pass (K per mode),
H key-value heads, S columns of the cache (L + T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.patches import Patches, concat_patches
from twn_lightning.types import CotBatch, PromptBatch

KeyValues = list[tuple[Tensor, Tensor]]
"""Per layer keys and values, each (B, H, columns, head_dim)."""

IGNORED_TARGET = -100


@dataclass
class ReasonerState:
    """The cache and the hidden states of pass R over `[P(x), c]`."""

    layers: KeyValues
    """Keys and values of L prompt columns (left-padded), then T CoT columns (right-padded)."""
    prompt_mask_BL: Tensor
    cot_mask_BT: Tensor | None
    prompt_end_B: Tensor
    """1 + the largest mRoPE position of `P(x)`."""
    readable_end_B: Tensor
    """1 + the largest mRoPE position of `P(x) + c`."""
    last_hidden_BD: Tensor
    """Hidden state of the last prompt token, after the final norm: half of the gate's features."""
    cot_logits_BTV: Tensor | None
    """(B, T + 1, V): column t predicts CoT token t, column len(c) predicts the end of the turn."""
    prompts: PromptBatch
    cots: CotBatch | None

    def __len__(self) -> int:
        return self.prompt_mask_BL.shape[0]

    @property
    def mask_BS(self) -> Tensor:
        """True at every readable column of the cache."""
        prompt = self.prompt_mask_BL.bool()
        return prompt if self.cot_mask_BT is None else torch.cat([prompt, self.cot_mask_BT.bool()], dim=-1)

    def detach(self) -> ReasonerState:
        """The same state without its graph and without the hidden states it was cut from, to be kept beyond a step."""
        return replace(
            self,
            layers=[(k.detach(), v.detach()) for k, v in self.layers],
            last_hidden_BD=self.last_hidden_BD.detach().clone(),
            cot_logits_BTV=None if self.cot_logits_BTV is None else self.cot_logits_BTV.detach(),
        )

    def select(self, rows: Sequence[int]) -> ReasonerState:
        """Some rows, in the order given and possibly repeated; padding stays as it is."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.prompt_mask_BL.device)
        return ReasonerState(
            layers=[(k[index], v[index]) for k, v in self.layers],
            prompt_mask_BL=self.prompt_mask_BL[index],
            cot_mask_BT=None if self.cot_mask_BT is None else self.cot_mask_BT[index],
            prompt_end_B=self.prompt_end_B[index],
            readable_end_B=self.readable_end_B[index],
            last_hidden_BD=self.last_hidden_BD[index],
            cot_logits_BTV=None if self.cot_logits_BTV is None else self.cot_logits_BTV[index],
            prompts=self.prompts.select(list(rows)),
            cots=None if self.cots is None else self.cots.select(list(rows)),
        )

    @staticmethod
    def concat(states: Sequence[ReasonerState]) -> ReasonerState:
        """Rows of several states, one after another: prompts padded further on the left, CoTs on the right.

        A state without CoTs counts as one with empty CoTs where another has some. Logits are dropped unless every
        state has them.
        """
        if len(states) == 1:
            return states[0]
        length = max(s.prompt_mask_BL.shape[1] for s in states)
        with_cots = any(s.cots is not None for s in states)
        cot_length = max(0 if s.cots is None else s.cots.ids_BT.shape[1] for s in states)
        parts = [_pad_state(s, length, cot_length) for s in states]
        logits = [s.cot_logits_BTV for s in parts]
        return ReasonerState(
            # Keys and values are padded one layer at a time: they are nearly all of the memory.
            layers=[
                (
                    torch.cat([_pad_span(s.layers[i][0], s, length, cot_length) for s in states]),
                    torch.cat([_pad_span(s.layers[i][1], s, length, cot_length) for s in states]),
                )
                for i in range(len(states[0].layers))
            ],
            prompt_mask_BL=torch.cat([s.prompt_mask_BL for s in parts]),
            cot_mask_BT=torch.cat([s.cots.mask_BT for s in parts if s.cots is not None]) if with_cots else None,
            prompt_end_B=torch.cat([s.prompt_end_B for s in parts]),
            readable_end_B=torch.cat([s.readable_end_B for s in parts]),
            last_hidden_BD=torch.cat([s.last_hidden_BD for s in parts]),
            cot_logits_BTV=torch.cat([x for x in logits if x is not None])
            if all(x is not None for x in logits)
            else None,
            prompts=concat_prompts([s.prompts for s in parts]),
            cots=concat_cots([s.cots for s in parts if s.cots is not None]) if with_cots else None,
        )


def _pad_span(cache_BHSD: Tensor, state: ReasonerState, length: int, cot_length: int) -> Tensor:
    """Keys or values of a state as wide as its padded prompts and CoTs."""
    cots = 0 if state.cots is None else state.cots.ids_BT.shape[1]
    return F.pad(cache_BHSD, (0, 0, length - state.prompt_mask_BL.shape[1], cot_length - cots))


def _pad_state(state: ReasonerState, length: int, cot_length: int) -> ReasonerState:
    """The state without its layers: prompts `length` wide, CoTs (empty ones if it has none) `cot_length` wide."""
    left = length - state.prompt_mask_BL.shape[1]
    cots = state.cots
    if cots is None:
        empty = torch.zeros(len(state), 0, dtype=torch.long, device=state.prompt_mask_BL.device)
        cots = CotBatch(empty, empty, torch.zeros(len(state), dtype=torch.bool, device=empty.device))
    right = cot_length - cots.ids_BT.shape[1]
    cots = CotBatch(F.pad(cots.ids_BT, (0, right)), F.pad(cots.mask_BT, (0, right)), cots.closed_B)
    prompts = replace(
        state.prompts,
        input_ids_BL=F.pad(state.prompts.input_ids_BL, (left, 0)),
        attention_mask_BL=F.pad(state.prompts.attention_mask_BL, (left, 0)),
        mm_token_type_ids_BL=F.pad(state.prompts.mm_token_type_ids_BL, (left, 0)),
    )
    return replace(
        state,
        layers=[],
        prompt_mask_BL=prompts.attention_mask_BL,
        cot_mask_BT=cots.mask_BT,
        cot_logits_BTV=None if state.cot_logits_BTV is None else F.pad(state.cot_logits_BTV, (0, 0, 0, right)),
        prompts=prompts,
        cots=cots,
    )


def concat_prompts(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Prompts of equal padded length, one batch after another, with their media."""

    def joined(parts: list[Patches | None]) -> Patches | None:
        found = [part for part in parts if part is not None]
        return concat_patches(found) if found else None

    def counts(name: str) -> tuple[int, ...]:
        if not any(getattr(b, name) for b in batches):
            return ()
        return tuple(n for b in batches for n in (getattr(b, name) or (0,) * len(b)))

    return PromptBatch(
        torch.cat([b.input_ids_BL for b in batches]),
        torch.cat([b.attention_mask_BL for b in batches]),
        torch.cat([b.mm_token_type_ids_BL for b in batches]),
        joined([b.images for b in batches]),
        joined([b.videos for b in batches]),
        counts("images_per_row"),
        counts("videos_per_row"),
    )


def concat_cots(batches: Sequence[CotBatch]) -> CotBatch:
    """CoTs one batch after another, right-padded to the longest."""
    width = max(b.ids_BT.shape[1] for b in batches)
    padded = [
        (F.pad(b.ids_BT, (0, width - b.ids_BT.shape[1])), F.pad(b.mask_BT, (0, width - b.mask_BT.shape[1])))
        for b in batches
    ]
    return CotBatch(
        torch.cat([ids for ids, _ in padded]),
        torch.cat([mask for _, mask in padded]),
        torch.cat([b.closed_B for b in batches]),
    )


def cot_targets(cots: CotBatch, eot_id: int) -> Tensor:
    """What `cot_logits_BTV` should predict: the CoT, then the end of the turn.

    Returns:
        (B, T + 1) int64; IGNORED_TARGET behind the end of the turn, and at it where the CoT never closed (what would
        have followed the cap is not known).
    """
    targets = F.pad(cots.ids_BT.masked_fill(~cots.mask_BT.bool(), IGNORED_TARGET), (0, 1), value=IGNORED_TARGET)
    end = torch.where(cots.closed_B, eot_id, IGNORED_TARGET).to(targets.dtype)
    return targets.scatter(1, cots.lengths_B[:, None].long(), end[:, None])


def readable_cache(
    state: ReasonerState, interface: Literal["kv_detached", "kv_joint", "reencode"], prefix: str
) -> KeyValues:
    """THE INTERFACE: the cache as pass E reads it. This is the only detach between the reasoner and the embedder.

    Args:
        state: what pass R left.
        interface: `kv_detached` cuts the gradient, `kv_joint` (the paper's conflict baseline) does not.
        prefix: which adapter read the prompt. Under `embedding` the prompt's cache belongs to the embedder, so the
            contrastive gradient reaches phi_E through it and only the CoT's columns are cut.
    """
    if interface == "kv_joint":
        return state.layers
    if prefix == "embedding":
        cut = state.prompt_mask_BL.shape[1]
        return [(_detach_from(k, cut), _detach_from(v, cut)) for k, v in state.layers]
    return [(k.detach(), v.detach()) for k, v in state.layers]


def _detach_from(tensor: Tensor, column: int) -> Tensor:
    if column == tensor.shape[2]:
        return tensor
    return torch.cat([tensor[:, :, :column], tensor[:, :, column:].detach()], dim=2)


class CacheView:
    """Keys and values in the form transformers' attention layers ask for; the past given to it is never modified.

    Hugging Face caches grow in place and copy on construction. This one hands each layer past + new, and remembers
    the new columns only.
    """

    def __init__(self, past: KeyValues | None = None):
        self.past = past
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def past_of(self, layer_idx: int) -> tuple[Tensor, Tensor] | None:
        return None if self.past is None else self.past[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        past = self.past_of(layer_idx)
        return 0 if past is None else past[0].shape[2]

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with its new columns; returns what it should attend to."""
        self.add(layer_idx, key, value)
        past = self.past_of(layer_idx)
        if past is None:
            return key, value
        return torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)

    def add(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        """Remember a layer's new columns."""
        self.new[layer_idx] = (key, value)

    def new_layers(self) -> KeyValues:
        return [self.new[i] for i in sorted(self.new)]


def causal_mask(mask_BS: Tensor, num_queries: int) -> Tensor:
    """Boolean attention mask of the last `num_queries` columns over all of them.

    Args:
        mask_BS: True at readable columns.
        num_queries: how many of the columns, at the end, attend.

    Returns:
        (B, 1, num_queries, S). A padding column attends to itself: a row without any key would be NaN.
    """
    columns = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    rows = columns[-num_queries:, None]
    return ((columns <= rows) & mask_BS.bool()[:, None, None, :]) | (columns == rows)


def query_mask(state: ReasonerState, modes: Sequence[str], num_queries: int, bidirectional: bool) -> Tensor:
    """Mask of pass E: each mode's queries read their own span of the cache and their own mode's queries.

    Returns:
        (B, 1, M, S + M) bool with M = len(modes) * num_queries and S the state's columns.
    """
    device = state.prompt_mask_BL.device
    own = torch.ones(num_queries, num_queries, dtype=torch.bool, device=device)
    among = torch.block_diag(*[own if bidirectional else own.tril()] * len(modes)).bool()
    readable = state.mask_BS
    prompt_only = readable.clone()
    prompt_only[:, state.prompt_mask_BL.shape[1] :] = False
    spans = [prompt_only if mode == "discriminative" else readable for mode in modes]
    span_BMS = torch.stack(spans, dim=1).repeat_interleave(num_queries, dim=1)
    return torch.cat([span_BMS, among.expand(len(state), -1, -1)], dim=-1)[:, None]


def query_positions(state: ReasonerState, modes: Sequence[str], num_queries: int) -> Tensor:
    """Query k stands at `p0 + k` on all three axes, `p0` the end of its mode's readable span.

    Returns:
        (3, B, M) int64.
    """
    steps = torch.arange(num_queries, device=state.prompt_end_B.device)
    ends = [state.prompt_end_B if mode == "discriminative" else state.readable_end_B for mode in modes]
    return torch.cat([end[:, None] + steps for end in ends], dim=1).expand(3, -1, -1)
