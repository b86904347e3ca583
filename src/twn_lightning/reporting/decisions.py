"""Gate decisions as arrays: the columns of gate_decisions.parquet, and the verdict on each decision.

Shape letters: N queries of the evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.metrics import verdicts

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "query_key", "task", "side", "steps", "probability", "think", "hit_discriminative", "hit_generative",
    "loss_discriminative", "loss_generative", "gain", "tokens", "prompt_tokens", "query_length", "margin", "malformed",
    "query_text", "cot", "positive", "top1_discriminative", "top1_generative", "image_png",
)  # fmt: skip

_TEXTS = ("query_key", "query_text", "cot", "positive", "top1_discriminative", "top1_generative")
_BOUNDS = {"probability": (0, 1), "hit_discriminative": (0, 1), "hit_generative": (0, 1), "tokens": (0, np.inf)}

VERDICTS: dict[str, str] = {
    "helped": "Thought, and thinking turned a miss into a hit",
    "hurt": "Thought, and thinking turned a hit into a miss",
    "wasted": "Thought, and the outcome stayed the same",
    "missed": "Did not think where thinking would have turned a miss into a hit",
    "skipped": "Did not think where thinking would not have helped",
}
"""Each verdict on a decision, with its meaning."""


@dataclass(frozen=True)
class Decisions:
    """The numeric columns of an evaluation's gate decisions, one entry per query.

    Args:
        steps_N: int64, true number of reasoning steps; -1 where the source does not know it.
        probability_N: float64, the gate's p(think).
        think_N: bool, what the gate decided.
        hit_discriminative_N: float64 in [0, 1], hit@1 without a CoT, or the task's graded metric.
        hit_generative_N: float64 in [0, 1], the same with a CoT.
        gain_N: float64 nats, what thinking gained net of its price.
        tokens_N: float64, CoT tokens spent if the query thinks.
        malformed_N: bool, the CoT did not close before the cap.
        task_N: str, the source and its task.
        kind_N: str, what MMEB-nano calls the query: direct, lookalike or steps; empty where the source has no kinds.
    """

    steps_N: np.ndarray
    probability_N: np.ndarray
    think_N: np.ndarray
    hit_discriminative_N: np.ndarray
    hit_generative_N: np.ndarray
    gain_N: np.ndarray
    tokens_N: np.ndarray
    malformed_N: np.ndarray
    task_N: np.ndarray
    kind_N: np.ndarray

    def __len__(self) -> int:
        return len(self.think_N)

    @property
    def hit_adaptive_N(self) -> np.ndarray:
        """float64 in [0, 1], hit@1 (or the graded metric) of the embedding that the gate chose."""
        return np.where(self.think_N, self.hit_generative_N, self.hit_discriminative_N)

    @property
    def step_counts(self) -> list[int]:
        """The numbers of steps that occur, ascending; empty where the source does not know them."""
        return [int(step) for step in np.unique(self.steps_N) if step >= 0]

    def verdicts(self) -> np.ndarray:
        """One key of `VERDICTS` per query, (N,) of str."""
        return verdicts(self.think_N, self.hit_discriminative_N, self.hit_generative_N)


def read_decisions(table: pa.Table) -> Decisions:
    """Check a gate_decisions table and take its numeric columns.

    Args:
        table: one row per query, with the columns of `COLUMNS`, and `kind` where the source has kinds.

    Returns:
        The columns as arrays.

    Raises:
        DataError: no rows, a missing column, one of another type, or in a numeric column other than `steps` a value
            that is missing, not finite or out of range.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(
            f"the gate decisions lack the column(s) {', '.join(missing)}; they have: {', '.join(table.column_names)}. "
            "Write them again with `twn evaluate`."
        )
    if table.num_rows == 0:
        raise DataError("the gate decisions have 0 rows, so there is nothing to report. Evaluate at least one query.")

    def column(name: str, kind: Any = np.float64) -> np.ndarray:
        values = table.column(name)
        _check_type(name, values.type, kind)
        if values.null_count:
            raise DataError(
                f"column {name!r} of the gate decisions has {values.null_count} empty value(s) in {table.num_rows} "
                "rows; only `steps`, `kind`, `prompt_tokens` and `image_png` may be empty. Write them again with "
                "`twn evaluate`."
            )
        array = np.asarray(values.to_pylist(), dtype=kind)
        low, high = _BOUNDS.get(name, (-np.inf, np.inf))
        if kind is np.float64 and not (np.isfinite(array) & (low <= array) & (array <= high)).all():
            raise DataError(
                f"column {name!r} of the gate decisions needs numbers from {low:g} to {high:g}, it holds some from "
                f"{array.min():g} to {array.max():g}. Write them again with `twn evaluate`."
            )
        return array

    for name in _TEXTS:
        _check_type(name, table.column(name).type, str)
    _check_type("steps", table.column("steps").type, np.int64)
    kinds = table.column("kind").to_pylist() if "kind" in table.column_names else [None] * table.num_rows
    steps = [-1 if value is None else value for value in table.column("steps").to_pylist()]
    return Decisions(
        steps_N=np.asarray(steps, dtype=np.int64),
        probability_N=column("probability"),
        think_N=column("think", bool),
        hit_discriminative_N=column("hit_discriminative"),
        hit_generative_N=column("hit_generative"),
        gain_N=column("gain"),
        tokens_N=column("tokens"),
        malformed_N=column("malformed", bool),
        task_N=column("task", str),
        kind_N=np.asarray([value or "" for value in kinds], dtype=str),
    )


def _check_type(name: str, found: pa.DataType, kind: Any) -> None:
    """Refuse a column of another kind of values; one without any value has no kind."""
    import pyarrow.types as types

    fits = {
        str: types.is_string(found) or types.is_large_string(found),
        bool: types.is_boolean(found),
        np.int64: types.is_integer(found),
        np.float64: types.is_integer(found) or types.is_floating(found) or types.is_boolean(found),
    }
    if not fits[kind] and not types.is_null(found):
        raise DataError(
            f"column {name!r} of the gate decisions holds {found}, not {kind.__name__}. Write them again with "
            "`twn evaluate`."
        )
