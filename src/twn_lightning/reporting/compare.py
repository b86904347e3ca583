"""Several runs side by side: what differs in their settings, their final metrics, and their answers to shared queries.

Shape letters: S queries that two evaluations share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.metrics import paired_bootstrap_difference
from twn_lightning.reporting.decisions import Decisions, read_decisions
from twn_lightning.reporting.read import SUMMARY_FILE, load_decisions
from twn_lightning.reporting.tables import TextTable, router_label
from twn_lightning.run import RunFolder
from twn_lightning.validation import flatten, settings_to_dict

if TYPE_CHECKING:
    import pyarrow as pa

MODES = {"never": "hit_discriminative_N", "always": "hit_generative_N", "adaptive": "hit_adaptive_N"}
"""The routers that two evaluations are compared under, and the column of `Decisions` each is scored by."""
_ABSENT = "–"


def settings_table(folders: Sequence[Path]) -> TextTable:
    """Setting x run, of the settings whose values differ; paths of the runs themselves are left out.

    Raises:
        CheckpointError: a folder is not a run folder.
    """
    settings = [flatten(settings_to_dict(RunFolder(folder).settings())) for folder in folders]
    keys = dict.fromkeys(key for values in settings for key in values if not key.startswith("paths."))
    rows = [[key, *(str(values.get(key, _ABSENT)) for values in settings)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return TextTable("Settings that differ", ["Setting", *run_names(folders)], [row[0] for row in rows], rows)


def metrics_table(folders: Sequence[Path]) -> TextTable:
    """Final metric x run, of the metrics that at least two runs have."""
    metrics = [flatten(RunFolder(folder).metrics()) for folder in folders]
    counts: dict[str, int] = {}
    for values in metrics:
        for name, value in values.items():
            counts[name] = counts.get(name, 0) + _is_number(value)
    rows = [[name, *(_shown(values.get(name)) for values in metrics)] for name, count in counts.items() if count > 1]
    return TextTable("Final metrics", ["Metric", *run_names(folders)], [row[0] for row in rows], rows)


def training_curve(folder: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric over the steps of a training, from metrics.jsonl.

    Returns:
        Steps int64 and values float64; both empty where the run did not log the metric.
    """
    logged = [(line["step"], line[metric]) for line in RunFolder(folder).history() if _is_number(line.get(metric))]
    steps, values = zip(*logged, strict=True) if logged else ((), ())
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def shared_decisions(first: Path, second: Path) -> tuple[list[dict[str, Any]], Decisions, Decisions]:
    """The decisions of two evaluations on the queries that both have.

    Args:
        first: an evaluated run folder.
        second: another.

    Returns:
        The S rows of the first's gate_decisions.parquet, and both evaluations' columns in the same order.

    Raises:
        DataError: a folder holds no evaluation, they share no query, or one key stands for two different queries.
    """
    tables = [load_decisions(folder) for folder in (first, second)]
    rows = [{key: row for row, key in enumerate(table.column("query_key").to_pylist())} for table in tables]
    shared = [key for key in rows[0] if key in rows[1]]
    if not shared:
        raise DataError(
            f"{first} and {second} share none of their {tables[0].num_rows} and {tables[1].num_rows} queries: evaluate "
            "both with the same data.source, data.seed and tasks."
        )
    left, right = (table.take([row[key] for key in shared]) for table, row in zip(tables, rows, strict=True))
    differing = sum(a != b for a, b in zip(_contents(left), _contents(right), strict=True))
    if differing:
        raise DataError(
            f"{differing} of the {len(shared)} query keys that {first} and {second} share stand for different queries: "
            "their data differ. Evaluate both with the same data.seed and data.test_pairs."
        )
    return left.to_pylist(), read_decisions(left), read_decisions(right)


def _contents(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """What tells the queries of a table apart besides their keys."""
    return zip(*(table.column(name).to_pylist() for name in ("task", "query_text", "positive")), strict=True)


def difference_table(folders: Sequence[Path]) -> TextTable:
    """Router x (quality of the first evaluated run, of another, paired difference with a 95 % interval).

    Every further evaluated run among the folders is compared with the first on the queries that both have; there are no
    rows with fewer than two.

    Raises:
        DataError: as `shared_decisions`.
    """
    names = dict(zip(folders, run_names(folders), strict=True))
    evaluated = evaluated_runs(folders)
    rows = []
    for other in evaluated[1:]:
        _, first, second = shared_decisions(evaluated[0], other)
        for mode, column in MODES.items():
            before_S, after_S = getattr(first, column), getattr(second, column)
            change = paired_bootstrap_difference(after_S, before_S)
            rows.append(
                [
                    f"{names[other]} − {names[evaluated[0]]}",
                    router_label(mode),
                    f"{len(first):,}",
                    f"{100 * before_S.mean():.1f}",
                    f"{100 * after_S.mean():.1f}",
                    f"{100 * change.mean:+.1f}",
                    f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
                ]
            )
    header = ["Runs", "Router", "Queries", "First", "Other", "Difference", "95 % interval"]
    return TextTable("Points of quality on the same queries", header, [f"{row[0]} {row[1]}" for row in rows], rows)


def evaluated_runs(folders: Sequence[Path]) -> list[Path]:
    """Those of the run folders that hold gate decisions with their summary."""
    return [folder for folder in folders if (folder / SUMMARY_FILE).is_file()]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the folders' paths, as short as tells them apart."""
    parts = [folder.absolute().parts for folder in folders]
    longest = max(map(len, parts), default=1)
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise DataError(f"a run is named twice among {', '.join(map(str, folders))}: name each once.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if _is_number(value) else _ABSENT
