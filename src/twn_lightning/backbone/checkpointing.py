"""Activation checkpointing that pins the adapter and keeps the KV cache.

Hugging Face's own recomputes a layer under whatever adapter is active at backward time, and drops the cache inside
checkpointed layers, after which the embedding silently no longer depends on the image. Here a layer runs as a pure
function of its hidden states and the past keys and values; what it adds to the cache is returned and stored outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from twn_lightning.backbone.adapters import AdapterSet
from twn_lightning.backbone.interface import CacheView


def checkpoint_layers(layers: nn.ModuleList, adapters: AdapterSet) -> None:
    """Make each decoder layer drop its activations in the forward and recompute them in the backward.

    `forward` is replaced rather than the module wrapped, so parameter names stay and a strategy's hooks (FSDP2's
    unshard) stay outside of the recomputation.

    Args:
        layers: the language model's decoder layers.
        adapters: pinned again, as they were in the forward, while a layer is recomputed.
    """
    for index, layer in enumerate(layers):
        layer.forward = _checkpointed(layer.forward, index, adapters)


def _checkpointed(forward: Callable[..., Tensor], index: int, adapters: AdapterSet) -> Callable[..., Tensor]:
    def run(hidden_states: Tensor, *args: Any, past_key_values: CacheView | None = None, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled() or past_key_values is None:
            return forward(hidden_states, *args, past_key_values=past_key_values, **kwargs)
        pinned = adapters.pinned
        past = past_key_values.past_of(index)

        def layer(hidden: Tensor, *past_tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            view = _OneLayerView(past_tensors)
            with adapters.pin(pinned):
                output = forward(hidden, *args, past_key_values=view, **kwargs)
            return output, *view.new[index]

        output, key, value = checkpoint(layer, hidden_states, *(past or ()), use_reentrant=False)
        past_key_values.new[index] = (key, value)
        return output

    return run


class _OneLayerView(CacheView):
    """The cache as the one layer that is being recomputed sees it."""

    def __init__(self, past: tuple[Tensor, ...]):
        super().__init__()
        self._own = past

    def past_of(self, layer_idx: int) -> tuple[Tensor, Tensor] | None:
        return (self._own[0], self._own[1]) if self._own else None
