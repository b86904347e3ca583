"""The language model as decoding runs it: Hugging Face's own code over the same weights, with lean parts.

A second instance of the model's class is built without weights and is given the backbone's: embeddings, norms and
linears are replaced by modules that share them. The backbone itself is not touched.

Shape letters: A rows, S columns of the cache, D hidden size, V vocabulary, H query heads, G key-value heads, W width of
a head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AttentionInterface

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.fused_linears import GroupedLinear, LinearGroup, LoraGroup, MergedGroup, fusible
from twn_lightning.backbone.interface import CacheView
from twn_lightning.errors import ConfigError

ATTENTION = "twn_decoding"
LINEARS = {
    "self_attn": (("q_proj", "k_proj", "v_proj"), ("o_proj",)),
    "mlp": (("gate_proj", "up_proj"), ("down_proj",)),
}
"""The linears of a decoder layer, by what they read."""
NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")


class PlainModel:
    """The backbone as it is, LoRA applied by PEFT: what the others must equal, and the only one for sharded weights."""

    dtype: torch.dtype | None = None

    def __init__(self, backbone: DualLoRABackbone):
        self.backbone = backbone

    def logits(self, hidden_AD: Tensor) -> Tensor:
        """What predicts the next token, (A, V)."""
        found: Tensor = self.backbone("logits", hidden_BD=hidden_AD)["logits"]
        return found

    def step(self, ids_A: Tensor, positions_A: Tensor, readable_AS: Tensor, cache: CacheView) -> Tensor:
        """Run one token per row, put it into the cache, and return the hidden states (A, D)."""
        found: Tensor = self.backbone("step", ids_B=ids_A, positions_B=positions_A, mask_BS=readable_AS, cache=cache)[
            "hidden"
        ]
        return found


class StepModel:
    """A language model for steps of one token per row.

    Args:
        backbone: whose weights to share.
        merged: multiply by a merged copy of the linears' weights instead of adding the LoRA's product.

    Raises:
        ConfigError: this backbone can only be decoded plainly; says why.
    """

    @torch.inference_mode(False)  # its copies are refreshed outside of inference mode too
    def __init__(self, backbone: DualLoRABackbone, merged: bool):
        if reason := why_only_plain(backbone):
            raise ConfigError(f"no fused decoding: {reason}. Decode with `decoding_with(backbone, 'plain')`")
        self.adapter = backbone.reasoner
        self.merged = merged
        self.head: nn.Module = backbone.model.lm_head  # type: ignore[assignment]
        self.dtype: torch.dtype = backbone.language_model.embed_tokens.weight.dtype
        self.groups: list[LinearGroup] = []
        self.language_model = self._twin(backbone.language_model)
        self._weights = self._where(self.adapter)

    def fits(self, adapter: str) -> bool:
        """Whether the weights are where they were and the adapter has the ranks that there is room for."""
        return self._weights == self._where(adapter)

    def _where(self, adapter: str) -> list[tuple[int, int]]:
        layers = [layer for group in self.groups for layer in group.layers]
        return [(layer.get_base_layer().weight.data_ptr(), layer.r[adapter]) for layer in layers]

    def follow(self, adapter: str) -> None:
        """Take over the current weights of the adapter that plays the reasoner now; a merged copy stays as it is.

        Raises:
            ConfigError: another adapter than the merged one.
        """
        if self.merged and adapter != self.adapter:
            raise ConfigError(
                f"the merged copy holds the adapter '{self.adapter}' and '{adapter}' is the reasoner now: "
                "enter `decoding_with(backbone, 'merged')` while it is pinned"
            )
        if not self.merged:
            for group in self.groups:
                group.refresh(adapter)

    def logits(self, hidden_AD: Tensor) -> Tensor:
        """What predicts the next token, (A, V)."""
        with torch.autocast(hidden_AD.device.type, enabled=False):
            found: Tensor = self.head(hidden_AD)
        return found

    def step(self, ids_A: Tensor, positions_A: Tensor, readable_AS: Tensor, cache: CacheView) -> Tensor:
        """Run one token per row, put it into the cache, and return the hidden states (A, D)."""
        mask_AS = torch.zeros(readable_AS.shape, dtype=self.dtype, device=readable_AS.device)
        mask_AS.masked_fill_(~readable_AS, torch.finfo(self.dtype).min)
        with torch.autocast(ids_A.device.type, enabled=False):
            hidden: Tensor = self.language_model(
                inputs_embeds=self.language_model.embed_tokens(ids_A[:, None]),
                attention_mask=mask_AS[:, None, None],
                position_ids=positions_A[None, :, None].expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return hidden[:, 0]

    def _twin(self, source: Any) -> Any:
        """An instance of the source's class whose modules share the source's weights."""
        with torch.device("meta"):
            twin = type(source)(copy.deepcopy(source.config)).eval()
        AttentionInterface.register(ATTENTION, grouped_attention)
        twin.set_attn_implementation(ATTENTION)
        twin.embed_tokens, twin.rotary_emb = source.embed_tokens, source.rotary_emb
        eps = source.config.rms_norm_eps
        twin.norm = StepNorm(source.norm.weight, eps)
        for own, theirs in zip(twin.layers, source.layers, strict=True):
            for path in NORMS:
                own.set_submodule(path, StepNorm(theirs.get_submodule(path).weight, eps))
            for part, groups in LINEARS.items():
                for names in groups:
                    self._group(getattr(own, part), getattr(theirs, part), names)
        shared = {id(p) for p in source.parameters()}
        missing = [name for name, p in twin.named_parameters() if id(p) not in shared]
        if missing:
            raise ConfigError(
                f"no fused decoding: {type(source).__name__} has {len(missing)} parameters that it does not know, such "
                f"as {missing[0]}. Decode with `decoding_with(backbone, 'plain')`, and report the transformers version"
            )
        return twin

    def _group(self, own: nn.Module, theirs: nn.Module, names: tuple[str, ...]) -> None:
        kind = MergedGroup if self.merged else LoraGroup
        group = kind([getattr(theirs, name) for name in names], self.adapter)
        self.groups.append(group)
        for index, name in enumerate(names):
            setattr(own, name, GroupedLinear(group, index))


class StepNorm(nn.Module):
    """RMSNorm in one kernel."""

    def __init__(self, weight: nn.Parameter, eps: float):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


def grouped_attention(
    module: nn.Module,
    query_AH1W: Tensor,
    key_AGSW: Tensor,
    value_AGSW: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one token per row: the heads that share keys become the queries of one head, no key is repeated."""
    rows, heads, _, width = query_AH1W.shape
    groups = key_AGSW.shape[1]
    query = query_AH1W.reshape(rows, groups, heads // groups, width)
    output = F.scaled_dot_product_attention(query, key_AGSW, value_AGSW, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, width), None


def why_only_plain(backbone: DualLoRABackbone) -> str | None:
    """What keeps a backbone from fused decoding; None if nothing does."""
    if isinstance(backbone, FSDPModule):
        return "the weights are sharded and gathered layer by layer"
    if backbone.training and backbone.settings.dropout > 0:
        return f"LoRA dropout of {backbone.settings.dropout} is on: call backbone.eval()"
    if backbone.language_model.config._attn_implementation == "eager":
        return "model.attention=eager was asked for: set model.attention=auto"
    if not all(map(fusible, _linears(backbone))):
        return "the language model's linears are not plain ones, as with model.quantization"
    return None


def _linears(backbone: DualLoRABackbone) -> Iterator[nn.Module]:
    for layer in backbone.language_model.layers:
        for part, groups in LINEARS.items():
            for names in groups:
                yield from (getattr(getattr(layer, part), name) for name in names)
