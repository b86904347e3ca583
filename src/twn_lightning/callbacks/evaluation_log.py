"""What `twn evaluate` gives to the loggers: `eval/<meta-task>/...`, the gate's quality, and tables in wandb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from twn_lightning.benchmark.aggregate import Aggregate
from twn_lightning.benchmark.registry import TASK_FILES, get_task
from twn_lightning.callbacks.loggers import open_loggers
from twn_lightning.callbacks.wandb_tables import log_curves, log_decisions, wandb_loggers
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

BY_TASK = ("never", "always", "adaptive", "think_rate")


def log_evaluation(
    settings: Settings,
    run_folder: RunFolder,
    *,
    means: Aggregate | None = None,
    summary: Mapping[str, Any] | None = None,
    decisions: pa.Table | None = None,
) -> None:
    """Log an evaluation, once and whole, to what `logger.name` asks for.

    Args:
        settings: `logger` is read.
        run_folder: of the evaluation.
        means: a benchmark suite's scores.
        summary: from `build_summary`.
        decisions: gate_decisions.parquet; None: nothing was routed.
    """
    values = evaluation_values(means, summary)
    with open_loggers(settings, run_folder, "evaluate") as loggers:
        for logger in loggers:
            logger.log_metrics(values, 0)
        for logger in wandb_loggers(loggers):
            logger.summarise(values)
            if decisions is not None:
                log_decisions(logger, decisions)
                log_curves(logger, decisions)


def evaluation_values(means: Aggregate | None, summary: Mapping[str, Any] | None) -> dict[str, float]:
    """Plain values by name: arguments as for `log_evaluation`.

    Returns:
        `eval/<meta-task>/score` of a suite, and, where both modes were measured, `never`, `always`, `adaptive` and
        `think_rate` of each meta-task (the mean over its tasks; a source without meta-tasks: of each task) and, with
        `tokens_per_query`, of `all`; `gate/auroc` and `gate/ece`. What is unknown is left out.
    """
    values: dict[str, float | None] = {}
    if means is not None:
        values |= {f"eval/{name}/score": score for name, score in means.meta_tasks.items()}
        values["eval/all/score"] = means.all
    if summary is not None:
        groups: dict[str, list[Mapping[str, float]]] = {}
        for task, measured in summary["by_task"].items():
            groups.setdefault(_group(task), []).append(measured)
        for group, parts in groups.items():
            values |= {f"eval/{group}/{name}": float(np.mean([part[name] for part in parts])) for name in BY_TASK}
        values |= {f"eval/all/{router}": mode["hit@1"] for router, mode in summary["modes"].items()}
        values["eval/all/tokens_per_query"] = summary["modes"].get("adaptive", {}).get("tokens_per_query")
        values |= {f"eval/all/{name}": summary[name] for name in ("think_rate", "malformed_cot_rate")}
        values |= {f"gate/{name}": summary["gate"].get(name) for name in ("auroc", "ece")}
    return {name: value for name, value in values.items() if value is not None}


def _group(task: str) -> str:
    """The meta-task of `<suite>/<task>`, or the task itself where its source is no benchmark suite."""
    suite, _, name = task.partition("/")
    return get_task(name, suite).meta_task if suite in TASK_FILES else name or suite
