"""The linears of a decoding step, applied per input: those that read the same hidden state share one product.

A step has few rows, so it is bound by reading weights and by the number of kernels, not by arithmetic.

Shape letters: A rows, I input width, O output width, R rank (summed over a group where it says so).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class LinearGroup(ABC):
    """Adapted linears that read the same hidden state. Computes all of them when the first is asked for.

    Args:
        layers: PEFT's layers around plain `nn.Linear`s.
    """

    def __init__(self, layers: Sequence[LoraLayer]):
        self.layers = list(layers)
        self.bases: list[nn.Linear] = [layer.get_base_layer() for layer in layers]
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    @abstractmethod
    def refresh(self, adapter: str) -> None:
        """Take over an adapter's current weights, in place where they have been copied before."""

    @abstractmethod
    def compute(self, input_AI: Tensor) -> list[Tensor]:
        """The outputs (A, O) of all linears."""

    def output(self, index: int, hidden: Tensor) -> Tensor:
        """One linear's output for an input (A, 1, I)."""
        if self._input is not hidden or index not in self._outputs:
            self._input = hidden
            self._outputs = {i: out.unsqueeze(1) for i, out in enumerate(self.compute(hidden.squeeze(1)))}
        found = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return found


class LoraGroup(LinearGroup):
    """Unmerged: one product with the A matrices of all linears, then each B, already scaled, added to its output."""

    def __init__(self, layers: Sequence[LoraLayer], adapter: str):
        super().__init__(layers)
        weight = self.bases[0].weight
        self.ranks = [layer.lora_A[adapter].weight.shape[0] for layer in layers]
        self.down_RI = weight.new_empty(sum(self.ranks), weight.shape[1])
        self.ups_OR = [weight.new_empty(layer.lora_B[adapter].weight.shape) for layer in layers]
        self.refresh(adapter)

    @torch.no_grad()
    def refresh(self, adapter: str) -> None:
        for down, up, layer in zip(self.down_RI.split(self.ranks), self.ups_OR, self.layers, strict=True):
            down.copy_(layer.lora_A[adapter].weight)
            up.copy_(layer.lora_B[adapter].weight * layer.scaling[adapter])

    def compute(self, input_AI: Tensor) -> list[Tensor]:
        lows = F.linear(input_AI, self.down_RI).split(self.ranks, dim=-1)
        outputs = [F.linear(input_AI, base.weight, base.bias) for base in self.bases]
        return [out.addmm_(low, up.t()) for out, low, up in zip(outputs, lows, self.ups_OR, strict=True)]


class MergedGroup(LinearGroup):
    """A merged copy: W + scaling B A of all linears under one another, one product for the whole group."""

    def __init__(self, layers: Sequence[LoraLayer], adapter: str):
        super().__init__(layers)
        weights = [base.weight for base in self.bases]
        self.widths = [weight.shape[0] for weight in weights]
        self.weight_OI = weights[0].new_empty(sum(self.widths), weights[0].shape[1])
        biases: list[Tensor] = [base.bias for base in self.bases if base.bias is not None]
        self.bias_O = torch.cat(biases) if biases else None
        self.refresh(adapter)

    @torch.no_grad()
    def refresh(self, adapter: str) -> None:
        for merged, base, layer in zip(self.weight_OI.split(self.widths), self.bases, self.layers, strict=True):
            up, down = layer.lora_B[adapter].weight.float(), layer.lora_A[adapter].weight.float()
            merged.copy_(torch.addmm(base.weight.float(), up, down, alpha=layer.scaling[adapter]))

    def compute(self, input_AI: Tensor) -> list[Tensor]:
        return list(F.linear(input_AI, self.weight_OI, self.bias_O).split(self.widths, dim=-1))


class GroupedLinear(nn.Module):
    """One linear of a group, in the place where the language model calls it."""

    def __init__(self, group: LinearGroup, index: int):
        super().__init__()
        self.group, self.index = group, index

    def forward(self, hidden: Tensor) -> Tensor:
        return self.group.output(self.index, hidden)


def fusible(layer: Any) -> bool:
    """Whether a module is an adapted linear with weights that one can multiply by, not quantised ones."""
    return isinstance(layer, LoraLayer) and type(layer.get_base_layer()) is nn.Linear
