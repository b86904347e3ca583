"""Made run folders whose answer is known: what the studies under experiments/ read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twn_lightning.evaluation.cot_probe import BORROWING, CONDITIONS
from twn_lightning.evaluation.probes import write_columns
from twn_lightning.json_object import write_json
from twn_lightning.probe import COT_PROBE_FILE
from twn_lightning.reporting.decisions import COLUMNS
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, ModelSettings, Settings

WITHOUT_COT = {"direct": 0.95, "lookalike": 0.9, "steps": 0.15}
WITH_COT = {"direct": 0.95, "lookalike": 0.5, "steps": 0.93}
"""Quality by kind: thinking pays where steps are needed and hurts among lookalikes."""

PROBE_QUALITY = {"own": 0.95, "none": 0.5, "shuffled": 0.94, "other": 0.05, "teacher": 0.95}
"""hit@1 by condition of the CoT probe."""


def decisions(
    model_seed: int,
    count: int,
    without: Mapping[str, float] = WITHOUT_COT,
    with_cot: Mapping[str, float] = WITH_COT,
) -> pa.Table:
    """Outcomes of the same queries for every model: three kinds, a good gate, a query's own difficulty in both modes.

    Args:
        model_seed: of the model.
        count: number of queries.
        without: quality without a CoT, by kind.
        with_cot: quality with one.
    """
    queries = np.random.default_rng(0)
    kind = queries.choice(["direct", "lookalike", "steps"], count, p=[0.45, 0.2, 0.35])
    steps = np.where(kind == "steps", queries.integers(1, 9, count), 0)
    rng = np.random.default_rng(100 + model_seed)
    difficulty = rng.random(count)
    hit_d, hit_g = (difficulty < np.vectorize(rates.get)(kind) for rates in (without, with_cot))
    probability = 1 / (1 + np.exp(-rng.normal(np.where(kind == "steps", 3.0, -3.0), 1.0)))
    columns: dict[str, Any] = {
        "query_key": [f"mmeb_nano/test/{row}/{name}" for row, name in enumerate(kind)],
        "kind": kind,
        "steps": steps,
        "probability": probability,
        "think": probability > 0.5,
        "hit_discriminative": hit_d.astype(float),
        "hit_generative": hit_g.astype(float),
        "gain": 2.0 * hit_g - 2.0 * hit_d - 0.5,
        "tokens": rng.integers(8, 16, count) + steps,
        "query_length": rng.integers(5, 9, count),
        "margin": rng.random(count),
        "malformed": np.zeros(count, dtype=bool),
        "task": np.full(count, "mmeb_nano/NanoQA"),
    }
    rest = {name: ["" if "loss" not in name else 0.0] * count for name in COLUMNS if name not in columns}
    order = rng.permutation(count)  # every model's queries are written in another order
    return pa.table({**columns, **rest}).take(order)


def write_evaluation(folder: Path, adapters: str, table: pa.Table, model: str = "nano") -> Path:
    """An evaluation of some adapters.

    Args:
        folder: of the run.
        adapters: what was evaluated.
        table: its decisions.
        model: name of the backbone.
    """
    settings = Settings(model=ModelSettings(name=model), adapters=AdapterSettings(init_from=adapters))
    RunFolder(folder).create(settings)
    pq.write_table(table, folder / "gate_decisions.parquet")
    write_json(folder / "summary.json", {"threshold": 0.5})
    return folder


def write_model(folder: Path, settings: Settings, table: pa.Table, accuracy: float = 0.9) -> Path:
    """A model's folder as studies of variants read it: a training in `sft` and its evaluation in `evaluate`.

    Args:
        folder: of both.
        settings: of the training.
        table: decisions of the evaluation.
        accuracy: right answers on the validation split; the CoT loss at the end is 1 minus that.
    """
    run = RunFolder(folder / "sft").create(settings)
    for step in range(10, 101, 10):
        run.log(step, {"train/loss_cot": 1 - accuracy if step > 90 else 5.0})
    run.finish({"val/answer_accuracy": accuracy})
    write_evaluation(folder / "evaluate", str(folder / "sft" / "adapters"), table, settings.model.name)
    return folder


def probe_queries(rows: np.ndarray) -> dict[str, Any]:
    """What every probe records of its queries, of three kinds."""
    kind = np.array(["direct", "lookalike", "steps"], dtype=object)[rows % 3]
    return {
        "query_key": np.array([f"mmeb_nano/test/{row}" for row in rows], dtype=object),
        "task": np.full(len(rows), "made", dtype=object),
        "kind": kind,
        "steps": np.where(kind == "steps", 1 + rows % 8, 0),
    }


def write_cot_probe(folder: Path, seed: int, rows: np.ndarray, count: int, model: str = "nano") -> Path:
    """A CoT probe of one training seed; a query's difficulty is the same in all conditions.

    Args:
        folder: of the run.
        seed: of the model.
        rows: which of the queries it has.
        count: of all queries.
        model: name of the backbone.
    """
    columns = probe_queries(rows)
    difficulty = np.random.default_rng(seed).random(count)[rows]
    for name in CONDITIONS:
        columns[f"hit/{name}"] = (difficulty < PROBE_QUALITY.get(name, 0.3)).astype(float)
        columns[f"cosine/{name}"] = np.full(len(rows), 0.5)
        columns[f"tokens/{name}"] = np.full(len(rows), 9.0)
        columns[f"unchanged/{name}"] = np.full(len(rows), float(name == "own"))
    for name in BORROWING:
        columns[f"hit/{name}"][rows == rows[0]] = np.nan
        columns[f"follows/{name}"] = np.where(np.isnan(columns[f"hit/{name}"]), np.nan, 1.0)
    columns["cosine_of_two_queries"] = np.full(len(rows), 0.25)
    write_columns(columns, folder / COT_PROBE_FILE)
    settings = Settings(model=ModelSettings(name=model), adapters=AdapterSettings(init_from=f"seed{seed}"))
    run = RunFolder(folder).create(settings)
    run.finish({"malformed_cot_rate": 0.0})
    return folder
