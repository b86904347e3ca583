"""The recorded outcomes of a split: what the gate's labels and its calibration are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twn_lightning.atomic import whole_file
from twn_lightning.evaluation.decisions import decision_table
from twn_lightning.evaluation.outcomes import QueryOutcome
from twn_lightning.gate import thinking_gain

if TYPE_CHECKING:
    import pyarrow as pa

MAX_EXAMPLES = 32
"""Queries of a split that are kept with their texts, CoTs and pictures."""


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
        with whole_file(path) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in self.tensors().items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> LabelledSplit:
        """Read what `save` wrote."""
        return cls(**load_file(path))


def save_examples(path: Path, rows: Sequence[int], outcomes: Sequence[QueryOutcome]) -> None:
    """Keep the first few queries of a split in a parquet file, for `decided_examples`.

    Args:
        path: the file.
        rows: where each query stands in the split.
        outcomes: one for each of them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, outcomes = rows[:MAX_EXAMPLES], outcomes[:MAX_EXAMPLES]
    undecided = np.zeros(len(rows))
    table = decision_table(outcomes, undecided, undecided).append_column("row", pa.array(rows, pa.int64()))
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def decided_examples(path: Path, probability_N: Tensor, gain_N: Tensor, threshold: float) -> pa.Table:
    """The examples with what a gate decides about them, in the columns of gate_decisions.parquet.

    Args:
        path: what `save_examples` wrote.
        probability_N: the gate's, of the whole split.
        gain_N: what thinking gained, of the whole split.
        threshold: the gate thinks iff probability > threshold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows = torch.tensor(table.column("row").to_pylist())
    decided = {"probability": probability_N, "think": probability_N > threshold, "gain": gain_N.double()}
    for name, values_N in decided.items():
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values_N[rows].tolist()))
    return table.drop_columns(["row"])
