"""summary.json: the numbers of an adaptive evaluation, built from its gate decisions and checked against a schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jsonschema
import numpy as np

from twn_lightning.atomic import write_text
from twn_lightning.benchmark.aggregate import mean_over_meta_tasks
from twn_lightning.benchmark.registry import all_tasks
from twn_lightning.errors import DataError
from twn_lightning.metrics.statistics import paired_bootstrap_difference
from twn_lightning.reporting.decisions import Decisions, read_decisions

if TYPE_CHECKING:
    import pyarrow as pa

MAX_STEPS = 8


class RouterScore(Protocol):
    """What a router scored over N queries: `gate.routers.RouterScore` fits."""

    @property
    def hit_at_1(self) -> float: ...
    @property
    def tokens_per_query(self) -> float: ...
    @property
    def think_rate(self) -> float: ...
    @property
    def ci95(self) -> tuple[float, float]: ...
    @property
    def hits(self) -> np.ndarray: ...


@cache
def summary_schema() -> dict[str, Any]:
    """The JSON schema of a complete summary.json, as `make demo` and `make nano-suite` write it."""
    text = files("twn_lightning.reporting").joinpath("summary.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate_summary(summary: Mapping[str, Any], *, complete: bool = True) -> None:
    """Check a summary against the schema in the package.

    Args:
        summary: the parsed summary.json.
        complete: False admits what `twn evaluate` writes: any backbone and set of routers, and only the stages that
            were trained.

    Raises:
        DataError: the first problems found, each with its path, such as `modes.adaptive.hit@1`.
    """
    schema = summary_schema()
    if not complete:
        partial = {name: {**schema["properties"][name], "required": []} for name in ("modes", "added_parameter_ratio")}
        schema = {**schema, "properties": {**schema["properties"], **partial}, "then": True}
    validator = jsonschema.Draft202012Validator(schema)
    problems = [
        f"{_dotted(error.absolute_path)}: {error.message}"
        for error in sorted(validator.iter_errors(summary), key=lambda error: _dotted(error.absolute_path))
    ]
    problems += [f"{path}: {value} is not a finite number" for path, value in _non_finite(summary)]
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise DataError(
            "summary.json does not fit its schema (twn_lightning/reporting/summary.schema.json):"
            + "".join(f"\n  {problem}" for problem in problems[:8])
            + more
        )


def _dotted(path: Any) -> str:
    return ".".join(str(part) for part in path) or "(top level)"


def _non_finite(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """NaN passes every bound of a JSON schema, and is not JSON."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _non_finite(child, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from _non_finite(child, (*path, str(index)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield _dotted(path), value


def by_steps(decisions: Decisions) -> dict[str, dict[str, float]]:
    """hit@1 without, with and by the gate's choice of thinking, and the think rate, by true number of steps.

    Args:
        decisions: N queries.

    Returns:
        One entry per number of steps that occurs, "0" to "8".

    Raises:
        DataError: a query has more steps than the schema of summary.json has room for.
    """
    counts = decisions.step_counts
    if counts and counts[-1] > MAX_STEPS:
        raise DataError(
            f"a query has {counts[-1]} reasoning steps, and summary.json keeps 0 to {MAX_STEPS}. Cap `steps` in the "
            "data source, or leave it empty where it does not count reasoning steps."
        )
    return {str(step): _part(decisions, decisions.steps_N == step) for step in counts}


def by_name(decisions: Decisions, name_N: np.ndarray) -> dict[str, dict[str, float]]:
    """The same by the name of a task or a kind of query, in alphabetical order.

    Args:
        decisions: N queries.
        name_N: str; queries without a name are left out.
    """
    return {str(name): _part(decisions, name_N == name) for name in np.unique(name_N) if name}


def _part(decisions: Decisions, chosen_N: np.ndarray) -> dict[str, float]:
    return {
        "never": float(decisions.hit_discriminative_N[chosen_N].mean()),
        "always": float(decisions.hit_generative_N[chosen_N].mean()),
        "adaptive": float(decisions.hit_adaptive_N[chosen_N].mean()),
        "think_rate": float(decisions.think_N[chosen_N].mean()),
        "num_queries": int(chosen_N.sum()),
    }


def suite_score(value_N: np.ndarray, task_N: np.ndarray, suite: str) -> float | None:
    """A benchmark suite's score: the mean over its meta-tasks of the mean over their tasks.

    Args:
        value_N: quality of each query, in [0, 1].
        task_N: str, `<suite>/<task>`.
        suite: its name.

    Returns:
        None where a task has no query.

    Raises:
        ConfigError: no benchmark suite.
    """
    rows = {task.name: task_N == f"{suite}/{task.name}" for task in all_tasks(suite)}
    return mean_over_meta_tasks({name: float(value_N[row].mean()) for name, row in rows.items() if row.any()}, suite)


def cot_length_ratio(decisions: Decisions) -> float | None:
    """r: mean CoT tokens of the 0-step queries over the mean of those with steps; None without both kinds."""
    without, with_steps = decisions.steps_N == 0, decisions.steps_N >= 1
    if not without.any() or not with_steps.any():
        return None
    mean = decisions.tokens_N[with_steps].mean()
    return float(decisions.tokens_N[without].mean() / mean) if mean > 0 else None


def paired_difference(decisions: Decisions) -> dict[str, Any]:
    """hit@1 of adaptive minus always on the same queries, with its 95 % bootstrap interval over queries.

    Args:
        decisions: N queries.

    Returns:
        `{"difference": float, "ci95": [low, high]}`.
    """
    interval = paired_bootstrap_difference(decisions.hit_adaptive_N, decisions.hit_generative_N)
    return {"difference": float(interval.mean), "ci95": [float(interval.low), float(interval.high)]}


def build_summary(
    decisions: pa.Table,
    *,
    suite: str,
    stages: Mapping[str, Mapping[str, Any]],
    added_parameter_ratio: Mapping[str, float],
    router_scores: Mapping[str, RouterScore],
    gate: Mapping[str, float | None],
    seconds: float,
    scored: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary of an evaluation. Check it with `validate_summary`, write it with `write_summary`.

    Args:
        decisions: gate_decisions.parquet, N rows.
        suite: the suite that was evaluated.
        stages: `{"sft"|"rl"|"gate": {"metric", "before", "after", "seconds"}}`, of the stages that were trained.
        added_parameter_ratio: backbone name -> added over backbone parameters.
        router_scores: router name -> score, `never` and `always` included.
        gate: `{"auroc", "ece"}` against the hard label; None or NaN where undefined.
        seconds: wall-clock time of everything that the summary covers.
        scored: `suite` is a benchmark's, measured by its tasks' own metrics: give each router its score.
        extra: further top-level fields.

    Returns:
        Plain JSON values.

    Raises:
        DataError: the decisions lack a column, or have no rows.
    """
    columns = read_decisions(decisions)
    modes: dict[str, dict[str, Any]] = {
        name: {
            "hit@1": float(score.hit_at_1),
            "tokens_per_query": float(score.tokens_per_query),
            "ci95": [float(bound) for bound in score.ci95],
            "think_rate": float(score.think_rate),
        }
        for name, score in router_scores.items()
    }
    for name, score in router_scores.items() if scored else ():
        whole = suite_score(score.hits, columns.task_N, suite)
        modes[name] |= {} if whole is None else {"score": whole}
    oracle_tokens = modes["oracle"]["tokens_per_query"] if "oracle" in modes else 0.0
    adaptive_tokens = float((columns.tokens_N * columns.think_N).mean())
    return {
        "suite": suite,
        "num_queries": len(columns),
        "modes": modes,
        "think_rate": float(columns.think_N.mean()),
        "by_steps": by_steps(columns),
        "by_kind": by_name(columns, columns.kind_N),
        "by_task": by_name(columns, columns.task_N),
        "stages": {name: dict(stage) for name, stage in stages.items()},
        "gate": {
            name: None if value is None or not math.isfinite(value) else float(value) for name, value in gate.items()
        },
        "cot_length_ratio": cot_length_ratio(columns),
        "added_parameter_ratio": {name: float(ratio) for name, ratio in added_parameter_ratio.items()},
        "seconds": float(seconds),
        "paired": paired_difference(columns),
        "oracle_tokens_ratio": adaptive_tokens / oracle_tokens if oracle_tokens else None,
        "malformed_cot_rate": float(columns.malformed_N.mean()),
        **(extra or {}),
    }


def write_summary(summary: Mapping[str, Any], path: Path, *, complete: bool = True) -> None:
    """Check a summary and write it as JSON; an invalid one is not written.

    Args:
        summary: from `build_summary`.
        path: where to write, summary.json by convention; its folder is created.
        complete: see `validate_summary`.

    Raises:
        DataError: the summary does not fit its schema.
    """
    validate_summary(summary, complete=complete)
    write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
