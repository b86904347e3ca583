"""The recorded outcomes of a split: what the gate's labels and its calibration are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from twn_lightning.gate import thinking_gain


@dataclass
class LabelledSplit:
    """What thinking did for every query of a split; N rows, in the order of the pairs."""

    features_NF: Tensor
    loss_discriminative_N: Tensor
    loss_generative_N: Tensor
    hit_discriminative_N: Tensor
    hit_generative_N: Tensor
    tokens_N: Tensor

    def __len__(self) -> int:
        return len(self.tokens_N)

    def select(self, rows_M: Tensor) -> LabelledSplit:
        """Some of the queries, int64 (M,)."""
        return LabelledSplit(**{key: value[rows_M] for key, value in self.tensors().items()})

    def gain(self, price: float, mean_tokens: float) -> Tensor:
        """What thinking bought less what it cost, (N,)."""
        return thinking_gain(
            self.loss_discriminative_N, self.loss_generative_N, self.tokens_N, price=price, mean_tokens=mean_tokens
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, not copied."""
        return dict(vars(self))

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({key: tensor.contiguous() for key, tensor in self.tensors().items()}, temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> LabelledSplit:
        """Read what `save` wrote."""
        return cls(**load_file(path))
