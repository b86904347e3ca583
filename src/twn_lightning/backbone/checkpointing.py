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

        def layer(hidden: Tensor, *past_tensors: Tensor) -> tuple[Tensor, ...]:
            view = OneLayerView(past_tensors)
            with adapters.pin(pinned):
                output = forward(hidden, *args, past_key_values=view, **kwargs)
            return output, *view.added

        output, key, value = checkpoint(layer, hidden_states, *(past or ()), use_reentrant=False)
        past_key_values.add(index, key, value)
        return output

    return run


class OneLayerView(CacheView):
    """The cache as one layer sees it that runs as a function of its own.

    Args:
        past: the layer's keys and values so far; empty where there are none.
    """

    def __init__(self, past: tuple[Tensor, ...]):
        super().__init__()
        self._own = past
        self.added: tuple[Tensor, ...] = ()
        """The layer's new keys and values."""

    def past_of(self, layer_idx: int) -> tuple[Tensor, Tensor] | None:
        return (self._own[0], self._own[1]) if self._own else None

    def add(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        self.added = (key, value)

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.added = (key, value)  # not by `layer_idx`: compiled code must not depend on it
        if not self._own:
            return key, value
        return torch.cat([self._own[0], key], dim=2), torch.cat([self._own[1], value], dim=2)
