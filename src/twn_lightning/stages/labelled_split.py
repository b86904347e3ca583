"""The recorded outcomes of a split: what the gate's labels and its calibration are made of, and in which order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twn_lightning import checks
from twn_lightning.atomic import whole_file
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.data.sources import Split
from twn_lightning.evaluation.decisions import decision_table
from twn_lightning.evaluation.encoders.digests import tensors_digest
from twn_lightning.evaluation.outcomes import QueryOutcome
from twn_lightning.gate import thinking_gain
from twn_lightning.settings import Settings
from twn_lightning.strategy import rank, world_size

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN = "origin"
"""Name of the digest in a file's metadata."""
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

    def save(self, path: Path, origin: str = "") -> None:
        """Write a safetensors file, whole or not at all; `origin` says what it was recorded from, see `load`."""
        with whole_file(path) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in self.tensors().items()}, temporary, {ORIGIN: origin})

    @classmethod
    def load(cls, path: Path, origin: str = "") -> LabelledSplit:
        """Read what `save` wrote.

        Args:
            path: the file.
            origin: digest of what would be recorded now, `label_origin`; compared where both are known.

        Raises:
            CheckError: the file was recorded from something else.
        """
        with safe_open(path, "pt") as file:
            then = (file.metadata() or {}).get(ORIGIN, "")
        if origin and then and origin != then:
            checks.report(
                "stale_cache",
                f"{path} holds outcomes of other adapters, data or decoding settings (digest {then[:12]}) than this "
                f"run's ({origin[:12]}), so the gate would learn from another model. Delete {path.parent} to record "
                "them again, or resume with the settings of the run",
            )
        return cls(**load_file(path))


class ShuffledRows:
    """Rows of one rank, a pure function of (seed, step): every pass a new order, a partial last batch left out.

    Args:
        num_rows: rows there are.
        batch_size: over all ranks.
        epochs: passes.
        seed: of the orders.
    """

    def __init__(self, num_rows: int, batch_size: int, epochs: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.epochs, self.seed = num_rows, min(batch_size, num_rows), epochs, seed
        self.steps_per_epoch = num_rows // self.batch_size
        self.step = 0

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        while self.step < len(self):
            self.step += 1
            yield self.rank_rows(self.step - 1)

    def rank_rows(self, step: int) -> list[int]:
        """This rank's rows of a step."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        rows: list[int] = order[turn * self.batch_size : (turn + 1) * self.batch_size].tolist()
        return rows[rank() :: world_size()]

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def label_origin(backbone: DualLoRABackbone, settings: Settings, split: Split) -> str:
    """Digest of everything that the outcomes of a split depend on.

    Args:
        backbone: with the adapters whose outcomes they are.
        settings: of the run.
        split: which pairs.
    """
    data, gate = settings.data, settings.gate
    parts = {
        "weights": tensors_digest(backbone.trainable_state()),
        "backbone": backbone.digest,
        "data": [data.source, [asdict(entry) for entry in data.sources], data.seed, getattr(data, f"{split}_pairs")],
        "decoding": [data.max_new_tokens, data.num_frames],
        "losses": [gate.label_temperature, gate.num_negatives],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
