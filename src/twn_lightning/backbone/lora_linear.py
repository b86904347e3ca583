"""PEFT's LoRA linear with the update added in place: two matrix products behind the frozen one, and nothing between.

PEFT casts, scales and adds in passes of their own over the output, which cost as much as the products where the layers
are small or the rows few. One `addmm` scales and adds while it multiplies.

Shape letters: N rows and columns together, I input width, O output width, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn


class LoraLinear(lora.Linear):
    """A linear with adapters; equals PEFT's up to the rounding of one sum.

    PEFT's own forward runs where this one does not apply: no adapter or several, merged weights, DoRA and the like,
    LoRA biases, quantised weights. A float32 adapter on a bfloat16 model is applied in bfloat16 under autocast, as PEFT
    does it, and besides for inference in eval mode; where it trains without autocast, PEFT computes in float32.
    """

    fused = True
    """Set to False for PEFT's forward."""
    rounds_adapter = False
    """Whether inference may cast the adapter to the dtype of the frozen weights."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = self._fusible_adapter(x) if self.fused and not args and not kwargs else None
        if adapter is None:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        down_RI = self.lora_A[adapter].weight.to(x.dtype)
        low_NR = F.linear(self.lora_dropout[adapter](x), down_RI).flatten(0, -2)
        out_NO = self.base_layer(x.flatten(0, -2))
        up_RO = self.lora_B[adapter].weight.to(out_NO.dtype).t()
        out_NO.addmm_(low_NR, up_RO, alpha=self.scaling[adapter])
        return out_NO.unflatten(0, x.shape[:-1])

    def _fusible_adapter(self, x: Tensor) -> str | None:
        """The active adapter, if there is one and it is plain."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A or x.dim() < 2:
            return None
        if active[0] in self.lora_variant or self.lora_bias[active[0]] or type(self.base_layer) is not nn.Linear:
            return None
        if torch.is_autocast_enabled(x.device.type):
            return active[0]
        rounds = self.rounds_adapter and not torch.is_grad_enabled()
        own = x.dtype if rounds else self.lora_A[active[0]].weight.dtype
        return active[0] if x.dtype == self.base_layer.weight.dtype == own else None


def fuse(layer: nn.Module) -> None:
    """Let a layer that PEFT has made run as a `LoraLinear`; one of another kind, as for quantised weights, stays."""
    if type(layer) is lora.Linear:
        layer.__class__ = LoraLinear
