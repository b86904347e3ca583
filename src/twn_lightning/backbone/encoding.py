"""Items to embeddings: the discriminative, the generative and the adaptive path.

One prefill serves the gate, the CoT and both embeddings; only rows that think are decoded.

Shape letters: N items, B rows of one batch, D hidden size, F gate features (2 D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from twn_lightning.backbone.decoding import Decoded, any_sharded_rank, decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.early_exit import ExitRule
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.errors import ConfigError
from twn_lightning.types import EmbeddingMode, Item, Side

Gate = Callable[..., Tensor]
"""Features (B, F), and sides (B,) where the gate has a side embedding, to logits (B,)."""


@dataclass
class Encoded:
    """Embeddings of N items and how they came about; all tensors on the CPU."""

    discriminative_ND: Tensor
    generative_ND: Tensor | None
    """None in discriminative mode; rows that did not think, or never closed their CoT, hold the discriminative one."""
    embedding_ND: Tensor
    """The embedding of the mode asked for, with that fallback."""
    think_N: Tensor
    probability_N: Tensor | None
    """The gate's probability of thinking, where a gate was given."""
    cot_texts: list[str | None]
    tokens_N: Tensor
    """CoT tokens generated, 0 where the item did not think."""
    malformed_N: Tensor
    """True where the CoT had not closed by the cap. One that was left early is whole as it is."""
    prompt_tokens_N: Tensor
    features_NF: Tensor
    """The gate's features."""

    def __len__(self) -> int:
        return len(self.cot_texts)

    def select(self, rows: Sequence[int]) -> Encoded:
        """Some items, in the order given."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        values: dict[str, object] = {"cot_texts": [self.cot_texts[row] for row in rows]}
        for field in fields(Encoded):
            if field.name != "cot_texts":
                tensor = getattr(self, field.name)
                values[field.name] = None if tensor is None else tensor[index]
        return Encoded(**values)  # type: ignore[arg-type]


@torch.no_grad()
def encode(
    backbone: DualLoRABackbone,
    items: Sequence[Item],
    mode: EmbeddingMode | str,
    *,
    gate: Gate | None = None,
    threshold: float = 0.5,
    max_new_tokens: int = 64,
    batch_size: int = 500,
    side: Side | None = None,
    exit_rule: ExitRule | None = None,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """Embed items.

    Args:
        backbone: put into eval mode for the time.
        items: queries or candidates.
        mode: `discriminative` never decodes, `generative` always, `adaptive` where the gate says so.
        gate: gives `probability_N` in every mode; required for `adaptive`.
        threshold: think iff probability > threshold.
        max_new_tokens: cap of a CoT; one that has not closed by then falls back to the discriminative embedding.
        batch_size: rows prefetched and decoded together.
        side: what the items are, for a gate with a side embedding.
        exit_rule: when to leave a CoT early; never, by default.
        progress: called with the number of items done, after each batch.

    Raises:
        ConfigError: adaptive without a gate.
        DataError: no items, or an item whose media cannot be read.
    """
    mode = EmbeddingMode(mode)
    if mode is EmbeddingMode.ADAPTIVE and gate is None:
        raise ConfigError(
            "adaptive encoding needs a gate: train one (stage=gate), or ask for discriminative or generative"
        )
    training = backbone.training
    if training:  # switching visits every module, which takes as long as reading a short prompt
        backbone.eval()
    try:
        parts = []
        for start in range(0, max(len(items), 1), batch_size):
            part = _encode_batch(
                backbone, items[start : start + batch_size], mode, gate, threshold, max_new_tokens, side, exit_rule
            )
            parts.append(part)
            if progress is not None:
                progress(len(part))
    finally:
        if training:
            backbone.train()
    return _joined(parts)


def _encode_batch(
    backbone: DualLoRABackbone,
    items: Sequence[Item],
    mode: EmbeddingMode,
    gate: Gate | None,
    threshold: float,
    max_new_tokens: int,
    side: Side | None,
    exit_rule: ExitRule | None,
) -> Encoded:
    prompts = backbone.processor(items).to(backbone.device)
    state = backbone.reason(prompts)
    e_d = _wanted(backbone.embed(state, ["discriminative"]).discriminative_BD)
    features = backbone.gate_features(state, e_d)
    probability = _probability(gate, features, side)
    if mode is EmbeddingMode.ADAPTIVE:
        think = _wanted(probability) > threshold
    else:
        think = torch.full((len(items),), mode is EmbeddingMode.GENERATIVE, device=e_d.device)
    encoded = Encoded(
        discriminative_ND=e_d.cpu(),
        generative_ND=None if mode is EmbeddingMode.DISCRIMINATIVE else e_d.cpu().clone(),
        embedding_ND=e_d.cpu(),
        think_N=think.cpu(),
        probability_N=None if probability is None else probability.cpu(),
        cot_texts=[None] * len(items),
        tokens_N=torch.zeros(len(items), dtype=torch.long),
        malformed_N=torch.zeros(len(items), dtype=torch.bool),
        prompt_tokens_N=prompts.attention_mask_BL.sum(-1).cpu(),
        features_NF=features.cpu(),
    )
    rows = think.nonzero()[:, 0].tolist()
    if any_sharded_rank(backbone, think.any()) and not rows:
        # Another rank thinks, and weights are gathered together: this one decodes a row that nobody reads.
        _generate(backbone, state.select([0]), max_new_tokens, exit_rule)
    if rows:
        thinking = state if len(rows) == len(items) else state.select(rows)
        _think(backbone, thinking, rows, encoded, max_new_tokens, exit_rule)
    return encoded


def _wanted(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _probability(gate: Gate | None, features_BF: Tensor, side: Side | None) -> Tensor | None:
    if gate is None:
        return None
    if side is None:
        return gate(features_BF).sigmoid()
    index = torch.full((len(features_BF),), list(Side).index(side), dtype=torch.long, device=features_BF.device)
    return gate(features_BF, index).sigmoid()


def _think(
    backbone: DualLoRABackbone,
    state: ReasonerState,
    rows: list[int],
    encoded: Encoded,
    max_new_tokens: int,
    exit_rule: ExitRule | None,
) -> None:
    """Decode CoTs for some rows and write their generative embeddings into `encoded`."""
    decoded, e_g = _generate(backbone, state, max_new_tokens, exit_rule)
    ended = (decoded.cots.closed_B | decoded.exited_B).cpu()
    index = torch.tensor(rows)
    generative = _wanted(encoded.generative_ND)
    generative[index[ended]] = e_g[ended]
    encoded.embedding_ND = generative
    encoded.tokens_N[index] = decoded.cots.lengths_B.cpu()
    encoded.malformed_N[index] = ~ended
    for row, text in zip(rows, backbone.processor.decode_cots(decoded.cots), strict=True):
        encoded.cot_texts[row] = text


def _generate(
    backbone: DualLoRABackbone, state: ReasonerState, max_new_tokens: int, exit_rule: ExitRule | None
) -> tuple[Decoded, Tensor]:
    """CoTs of all rows of a state, and the embeddings (B, D) that read them."""
    decoded = decode_cots(backbone, state, max_new_tokens=max_new_tokens, exit_rule=exit_rule)
    return decoded, _wanted(backbone.embed(decoded.state, ["generative"]).generative_BD).cpu()


def _joined(parts: list[Encoded]) -> Encoded:
    """Batches one after another."""
    values: dict[str, object] = {}
    for field in fields(Encoded):
        pieces = [getattr(p, field.name) for p in parts]
        if field.name == "cot_texts":
            values[field.name] = [text for piece in pieces for text in piece]
        else:
            values[field.name] = None if pieces[0] is None else torch.cat(pieces)
    return Encoded(**values)  # type: ignore[arg-type]
