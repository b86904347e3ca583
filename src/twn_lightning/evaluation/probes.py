"""What the probes share: the queries they ask, each task's corpus, and scores by kind, steps and task.

A probe's columns are arrays of one value per query (Q,); they become one parquet file, from which its scores follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twn_lightning.atomic import whole_file
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.data.nano.tasks import KINDS
from twn_lightning.data.sources import PairSource, Split
from twn_lightning.errors import DataError
from twn_lightning.evaluation.outcomes import positive_rows
from twn_lightning.metrics import Interval, ranks
from twn_lightning.types import Item, Pair

Columns = dict[str, np.ndarray]

STEP_BINS = {"0": (0, 0), "1-3": (1, 3), "4+": (4, np.inf)}


@dataclass(frozen=True)
class TaskCorpus:
    """The queries of one task and what they are ranked against."""

    task: str
    rows: np.ndarray
    """Which of the queries, (R,)."""
    candidates: list[Item]
    positive_R: Tensor
    """Row of each query's positive among the candidates."""

    def hits(self, queries_QD: Tensor, candidates_CD: Tensor) -> np.ndarray:
        """1 where a query's positive ranks first, ties counting against it; (R,)."""
        return hits_at_1(queries_QD[self.rows], candidates_CD, self.positive_R)


def hits_at_1(queries_RD: Tensor, candidates_CD: Tensor, positive_R: Tensor) -> np.ndarray:
    """1 where the candidate named is strictly the most similar, else 0; (R,)."""
    scores_RC = queries_RD.float() @ candidates_CD.float().T
    return (ranks(scores_RC.numpy(), positive_R.numpy()) == 1).astype(np.float64)


def probed_pairs(source: PairSource, split: Split, count: int) -> list[Pair]:
    """The first pairs of a split.

    Raises:
        DataError: there are none.
    """
    pairs = list(source.pairs(split, count))
    if not pairs:
        raise DataError(f"source '{source.name}', split '{split}': no queries to probe; raise data.{split}_pairs")
    return pairs


def task_corpora(pairs: Sequence[Pair], source: PairSource, split: Split) -> list[TaskCorpus]:
    """The pairs by task, each with the task's whole corpus."""
    found = []
    for task in dict.fromkeys(pair.source for pair in pairs):
        rows = np.array([row for row, pair in enumerate(pairs) if pair.source == task])
        candidates = source.candidates(split, task)
        found.append(TaskCorpus(task, rows, candidates, positive_rows([pairs[row] for row in rows], candidates)))
    return found


def query_columns(pairs: Sequence[Pair]) -> Columns:
    """Key, task, kind and true number of steps of each query; kind "" and steps -1 where the source has none.

    MMEB-nano writes the kind at the end of the key.
    """
    kinds = [pair.query.key.rpartition("/")[2] for pair in pairs]
    return {
        "query_key": np.array([pair.query.key for pair in pairs], dtype=object),
        "task": np.array([pair.source for pair in pairs], dtype=object),
        "kind": np.array([kind if kind in KINDS else "" for kind in kinds], dtype=object),
        "steps": np.array([-1 if pair.steps is None else pair.steps for pair in pairs]),
    }


def grouped_scores(columns: Columns, score: Callable[[Columns], dict[str, Any]]) -> dict[str, Any]:
    """Scores of all queries, and of those of each kind, number of steps and task; empty groups are left out.

    Args:
        columns: of `query_columns` and of the probe.
        score: from the columns of some queries to their scores.
    """

    def groups(members: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: score(rows_of(columns, mask)) for name, mask in members.items() if mask.any()}

    steps, tasks = columns["steps"], columns["task"]
    return {
        "all": score(columns),
        "by_kind": groups({kind: columns["kind"] == kind for kind in KINDS}),
        "by_steps": groups({name: (low <= steps) & (steps <= high) for name, (low, high) in STEP_BINS.items()}),
        "by_task": groups({task: tasks == task for task in sorted(set(tasks))}),
    }


def rows_of(columns: Columns, rows: np.ndarray) -> Columns:
    """The columns of some queries."""
    return {name: values[rows] for name, values in columns.items()}


def plain_interval(interval: Interval) -> dict[str, Any]:
    """An interval as results.json has it."""
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}


def write_columns(columns: Columns, path: Path) -> None:
    """Write the columns as parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with whole_file(path) as temporary:
        pq.write_table(pa.table({name: pa.array(values.tolist()) for name, values in columns.items()}), temporary)


def read_columns(path: Path) -> Columns:
    """What `write_columns` wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@contextmanager
def evaluating(backbone: DualLoRABackbone) -> Iterator[None]:
    """The backbone in eval mode and without gradients, for a while."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(training)
