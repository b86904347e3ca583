"""Decoder layers compiled by torch: norms, rotary embedding, activation and LoRA's small steps become few kernels.

A layer runs as a pure function of its hidden states and the past keys and values, as in checkpointing: one compiled
function serves all layers, and what a layer adds to the cache is stored outside. The environment variable
TORCHDYNAMO_DISABLE=1 turns all compilation off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config

from twn_lightning.backbone.checkpointing import OneLayerView
from twn_lightning.backbone.interface import CacheView

VARIANTS = 16
"""Versions of the function that are kept: per adapter, with and without gradient, dropout, and past columns."""


def compile_layers(layers: nn.ModuleList, backend: str = "inductor") -> None:
    """Make each decoder layer run compiled wherever it reads more than one column.

    The first step takes longer by a minute. Call before `checkpoint_layers`, never after.

    Args:
        layers: the language model's decoder layers; `forward` is replaced, so parameter names stay.
        backend: torch.compile's.
    """
    dynamo_config.allow_unspec_int_on_nn_module = True  # else every layer's own number compiles it again
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, VARIANTS)
    run_layer = torch.compile(_run_layer, dynamic=True, backend=backend)
    for index, layer in enumerate(layers):
        layer.forward = _compiled(run_layer, layer.forward, index)


def _run_layer(
    forward: Callable[..., Tensor], hidden: Tensor, past: tuple[Tensor, ...], arguments: dict[str, Any]
) -> tuple[Tensor, ...]:
    """A layer's output, and its new keys and values."""
    view = OneLayerView(past)
    output = forward(hidden, past_key_values=view, **arguments)
    return output, *view.added


def _compiled(
    run_layer: Callable[..., tuple[Tensor, ...]], forward: Callable[..., Tensor], index: int
) -> Callable[..., Tensor]:
    def run(hidden_states: Tensor, *, past_key_values: Any = None, **arguments: Any) -> Tensor:
        if not isinstance(past_key_values, CacheView) or hidden_states.shape[1] == 1:
            return forward(hidden_states, past_key_values=past_key_values, **arguments)
        past = past_key_values.past_of(index) or ()
        output, key, value = run_layer(forward, hidden_states.contiguous(), past, arguments)
        past_key_values.add(index, key, value)
        return output

    return run
