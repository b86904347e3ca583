"""The two passes over the frozen language model: what `DualLoRABackbone` runs behind its `forward`.

Shape letters: B rows, L padded prompt length, T padded CoT length, S = L + T, K queries, M query tokens of one pass,
D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twn_lightning.backbone.adapters import EMBEDDING, REASONING, AdapterSet
from twn_lightning.backbone.interface import (
    CacheView,
    KeyValues,
    ReasonerState,
    causal_mask,
    query_mask,
    query_positions,
    readable_cache,
)
from twn_lightning.backbone.positions import prompt_positions
from twn_lightning.backbone.vision import VisualInputs, visual_inputs
from twn_lightning.settings import AdapterSettings, InterfaceSettings
from twn_lightning.types import CotBatch, PromptBatch


@dataclass
class TokenInputs:
    """A span of tokens as the language model takes it."""

    embeds_BLD: Tensor
    mask_BL: Tensor
    """True where a token is not padding."""
    positions_3BL: Tensor
    end_B: Tensor
    """1 + the largest position so far."""
    visual: VisualInputs | None = None

    def followed_by(self, other: TokenInputs) -> TokenInputs:
        """Both spans, one after the other."""
        return TokenInputs(
            torch.cat([self.embeds_BLD, other.embeds_BLD], dim=1),
            torch.cat([self.mask_BL, other.mask_BL], dim=1),
            torch.cat([self.positions_3BL, other.positions_3BL], dim=2),
            other.end_B,
            self.visual,
        )


class TwoPasses(nn.Module):
    """Pass R, pass E and the decoding step, as plain tensor operations returning dictionaries.

    The parts are set by `DualLoRABackbone`, which is what everything else talks to.
    """

    model: nn.Module
    adapters: AdapterSet
    settings: AdapterSettings
    interface: InterfaceSettings
    queries: nn.Parameter
    merge_size: int
    _reasoner: str | None = REASONING

    @property
    def reasoner(self) -> str:
        """The adapter that reads and writes CoTs now; `DualLoRABackbone.pin` changes it."""
        assert self._reasoner is not None, "the bare backbone writes no CoTs"
        return self._reasoner

    @property
    def language_model(self) -> Any:
        """The transformers text model: embeddings, decoder layers, final norm."""
        return self.model.model.language_model  # type: ignore[union-attr]

    def _language(
        self,
        embeds_BSD: Tensor,
        mask: Tensor,
        positions_3BS: Tensor,
        cache: CacheView,
        visual: VisualInputs | None = None,
    ) -> Tensor:
        """Hidden states after the final norm. The mask is boolean; only eager attention needs it additive."""
        if self.language_model.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=embeds_BSD.dtype).masked_fill(~mask, torch.finfo(embeds_BSD.dtype).min)
        self.adapters.cast_inputs(not torch.is_autocast_enabled(embeds_BSD.device.type))
        output = self.language_model(
            inputs_embeds=embeds_BSD,
            attention_mask=mask,
            position_ids=positions_3BS,
            past_key_values=cache,
            use_cache=True,
            visual_pos_masks=None if visual is None else visual.padded_mask(embeds_BSD.shape[1]),
            deepstack_visual_embeds=None if visual is None else visual.deepstack,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _prompt_inputs(self, prompts: PromptBatch) -> TokenInputs:
        """Prompts with the vision tower's features at the placeholders. Frozen, so without a graph."""
        positions_3BL, end_B = prompt_positions(prompts, self.merge_size)
        with torch.no_grad():
            embeds_BLD = self.language_model.embed_tokens(prompts.input_ids_BL)
            visual = visual_inputs(self.model.model.visual, prompts)  # type: ignore[union-attr]
            if visual is not None:
                embeds_BLD = embeds_BLD.clone()
                embeds_BLD[visual.mask_BL] = visual.features.to(embeds_BLD.dtype)
        return TokenInputs(embeds_BLD, prompts.attention_mask_BL.bool(), positions_3BL, end_B, visual)

    def _cot_inputs(self, cots: CotBatch, prompt_end_B: Tensor) -> TokenInputs:
        """CoTs, which continue behind the prompts' largest positions."""
        with torch.no_grad():
            embeds = self.language_model.embed_tokens(cots.ids_BT)
        steps = torch.arange(cots.ids_BT.shape[1], device=prompt_end_B.device)
        positions = (prompt_end_B[:, None] + steps).expand(3, -1, -1)
        return TokenInputs(embeds, cots.mask_BT.bool(), positions, prompt_end_B + cots.lengths_B)

    def _reason(
        self, prompts: PromptBatch, cots: CotBatch | None, want_logits: bool, completions: int = 1
    ) -> dict[str, Any]:
        """Pass R: the cache, the prompt's last hidden state, and the logits from there on; one row per CoT."""
        prompt = self._prompt_inputs(prompts)
        end_B = prompt.end_B.repeat_interleave(completions)
        cot = None if cots is None else self._cot_inputs(cots, end_B)
        if self.settings.prefix == "reasoning" and completions == 1:
            layers, last_BD, next_BTD = self._read_together(prompt, cot)
        else:
            layers, last_BD, next_BTD = self._read_apart(prompt, cot, completions)
        found = {
            "layers": layers,
            "prompt_end": end_B,
            "readable_end": end_B if cot is None else cot.end_B,
            "last_hidden": last_BD,
        }
        if want_logits:
            found["logits"] = self.model.lm_head(next_BTD)  # type: ignore[operator]
        return found

    def _read_together(self, prompt: TokenInputs, cot: TokenInputs | None) -> tuple[KeyValues, Tensor, Tensor]:
        """Prefix adapter `reasoning`: one forward over `[P(x), c]`.

        Returns:
            The cache, the last prompt token's hidden state (B, D), and those that predict the CoT (B, T + 1, D).
        """
        length = prompt.embeds_BLD.shape[1]
        whole = prompt if cot is None else prompt.followed_by(cot)
        mask = causal_mask(whole.mask_BL, whole.mask_BL.shape[1])
        cache = CacheView()
        with self.adapters.pin(self._reasoner):
            hidden = self._language(whole.embeds_BLD, mask, whole.positions_3BL, cache, whole.visual)
        return cache.new_layers(), hidden[:, length - 1], hidden[:, length - 1 :]

    def _read_apart(
        self, prompt: TokenInputs, cot: TokenInputs | None, completions: int
    ) -> tuple[KeyValues, Tensor, Tensor]:
        """The prompt first, then the CoTs over its cache: several CoTs share one reading of their prompt.

        A prefix adapter `none` or `embedding` is not the reasoner: it reads a detached prefix and predicts the first
        CoT token from a detached hidden state, so the CoT loss cannot reach phi_E; the prefix cache it hands on keeps
        phi_E's graph, for the contrastive loss.

        Returns:
            As `_read_together`, prompt-major.
        """
        own = self.settings.prefix == "reasoning"
        cache = CacheView()
        with self.adapters.pin(self._reasoner if own else EMBEDDING if self.settings.prefix == "embedding" else None):
            mask = causal_mask(prompt.mask_BL, prompt.mask_BL.shape[1])
            last_BD = self._language(prompt.embeds_BLD, mask, prompt.positions_3BL, cache, prompt.visual)[:, -1]
        prefix = cache.new_layers()
        if completions > 1:
            prefix = [(k.repeat_interleave(completions, 0), v.repeat_interleave(completions, 0)) for k, v in prefix]
            last_BD = last_BD.repeat_interleave(completions, 0)
        first_B1D = (last_BD if own else last_BD.detach())[:, None]
        if cot is None or not cot.mask_BL.shape[1]:
            return prefix, last_BD, first_B1D
        readable = torch.cat([prompt.mask_BL.repeat_interleave(completions, 0), cot.mask_BL], dim=1)
        grown = CacheView(prefix if own else [(k.detach(), v.detach()) for k, v in prefix])
        with self.adapters.pin(self._reasoner):
            hidden = self._language(
                cot.embeds_BLD, causal_mask(readable, cot.mask_BL.shape[1]), cot.positions_3BL, grown
            )
        layers = [
            (torch.cat([k, new_k], dim=2), torch.cat([v, new_v], dim=2))
            for (k, v), (new_k, new_v) in zip(prefix, grown.new_layers(), strict=True)
        ]
        return layers, last_BD, torch.cat([first_B1D, hidden], dim=1)

    def _step(self, ids_B: Tensor, positions_B: Tensor, mask_BS: Tensor, cache: CacheView) -> dict[str, Tensor]:
        """One decoding step: a token per row, put into the cache; returns the hidden states (B, D)."""
        embeds = self.language_model.embed_tokens(ids_B[:, None])
        with self.adapters.pin(self._reasoner):
            hidden = self._language(embeds, mask_BS[:, None, None], positions_B[None, :, None].expand(3, -1, -1), cache)
        return {"hidden": hidden[:, 0]}

    def _logits(self, hidden_BD: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model.lm_head(hidden_BD)}  # type: ignore[operator]

    def _embed(self, state: ReasonerState, modes: list[str]) -> dict[str, Tensor]:
        """Pass E: the queries over what the interface lets them read; unit vectors by mode."""
        if "generative" not in modes and state.cots is not None:
            state = _without_cots(state)
        rows, count = len(state), self.settings.num_queries
        mask = query_mask(state, modes, count, self.settings.query_attention == "bidirectional")
        positions = query_positions(state, modes, count)
        queries = self.queries.to(state.last_hidden_BD.dtype).repeat(len(modes), 1).expand(rows, -1, -1)
        with self.adapters.pin(EMBEDDING):
            if self.interface.name == "reencode":
                hidden = self._reencode(state, queries, mask, positions)
            else:
                past = readable_cache(state, self.interface.name, self.settings.prefix)
                hidden = self._language(queries, mask, positions, CacheView(past))
        pooled = self._pool(hidden.unflatten(1, (len(modes), count)))
        return dict(zip(modes, pooled.unbind(1), strict=True))

    def _reencode(self, state: ReasonerState, queries_BMD: Tensor, mask: Tensor, positions_3BM: Tensor) -> Tensor:
        """Interface `reencode`: the embedding adapter reads prompt, CoT and queries from the tokens, not the cache."""
        read = self._prompt_inputs(state.prompts)
        if state.cots is not None:
            read = read.followed_by(self._cot_inputs(state.cots, read.end_B))
        columns = read.mask_BL.shape[1]
        reading = F.pad(causal_mask(read.mask_BL, columns), (0, queries_BMD.shape[1]))
        hidden = self._language(
            torch.cat([read.embeds_BLD, queries_BMD.to(read.embeds_BLD.dtype)], dim=1),
            torch.cat([reading, mask], dim=2),
            torch.cat([read.positions_3BL, positions_3BM], dim=2),
            CacheView(),
            read.visual,
        )
        return hidden[:, columns:]

    def _pool(self, hidden: Tensor) -> Tensor:
        """(..., K, D) hidden states of the queries to (..., D) unit vectors, in fp32."""
        hidden = hidden.float()
        pooled = hidden.mean(-2) if self.settings.pooling == "mean" else hidden[..., -1, :]
        return F.normalize(pooled, dim=-1)


def _without_cots(state: ReasonerState) -> ReasonerState:
    """The prompt's share of a state: what the discriminative embedding may read."""
    length = state.prompt_mask_BL.shape[1]
    layers = [(k[:, :, :length], v[:, :, :length]) for k, v in state.layers]
    return replace(state, layers=layers, cot_mask_BT=None, cots=None, readable_end_B=state.prompt_end_B)
