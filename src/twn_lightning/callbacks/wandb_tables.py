"""Tables in wandb: completions with their rewards while stage 3 trains, and gate decisions. All are bounded."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from PIL import Image

from twn_lightning.callbacks.wandb_logger import RunWandbLogger
from twn_lightning.metrics import calibration, quality_token_curve, verdicts
from twn_lightning.run import RunFolder
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.routing_gate_training import RoutingGateTraining

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 64
"""Of a table: each picture is a file to upload."""
MAX_CHARACTERS = 2000
MAX_POINTS = 50

_ROLLOUTS = (
    "task", "query_text", "positive", "cot", "reward", "reward_format", "reward_rank", "reward_gap", "advantage",
    "tokens", "closed",
)  # fmt: skip
_DECISIONS = (
    "task", "query_text", "probability", "think", "gain", "verdict", "tokens", "cot", "positive",
    "top1_discriminative", "top1_generative",
)  # fmt: skip


class WandbTables(Callback):
    """Logs `rl/rollouts` after each validation: the completions that were added to rollouts.parquet since.

    Args:
        run_folder: of the run.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder
        self._logged = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import pyarrow.parquet as pq

        path = self.run_folder.rollouts
        loggers = wandb_loggers(trainer.loggers)
        if not loggers or not path.exists():
            return
        rows = pq.read_table(path, columns=["step", *_ROLLOUTS]).to_pylist()
        step = rows[-1]["step"]
        if step > self._logged:
            newest = [row for row in rows if row["step"] == step][:MAX_ROWS]
            for logger in loggers:
                logger.log_table("rl/rollouts", ["step", *_ROLLOUTS], _cells(newest, ["step", *_ROLLOUTS]))
            self._logged = step


def wandb_loggers(loggers: Iterable[Logger]) -> list[RunWandbLogger]:
    """Those of a run's loggers that take tables."""
    return [logger for logger in loggers if isinstance(logger, RunWandbLogger)]


def log_result(loggers: Iterable[Logger], stage: TWNStage) -> None:
    """Give wandb a finished stage's final values, and of stage 2 some decisions of the exported gate.

    Args:
        loggers: of the run.
        stage: after `fit`.
    """
    for logger in wandb_loggers(loggers):
        logger.summarise(stage.final_metrics())
        decisions = stage.decisions() if isinstance(stage, RoutingGateTraining) else None
        if decisions is not None:
            log_decisions(logger, decisions)


def log_decisions(logger: RunWandbLogger, decisions: pa.Table) -> None:
    """Log `gate/decisions`: thumbnail, query, p(think), gain, CoT and verdict of a few decisions.

    Args:
        logger: of the run.
        decisions: in the columns of gate_decisions.parquet; those with a picture are shown first.
    """
    pictured_N = np.asarray(decisions.column("image_png").is_valid())
    chosen = np.argsort(~pictured_N, kind="stable")[:MAX_ROWS]
    rows = decisions.take(chosen).to_pylist()
    verdicts_N = verdicts(*(_column(decisions, name) for name in ("think", "hit_discriminative", "hit_generative")))
    for row, verdict in zip(rows, verdicts_N[chosen], strict=True):
        row["verdict"] = str(verdict)
    pictures = [None if row["image_png"] is None else Image.open(io.BytesIO(row["image_png"])) for row in rows]
    cells = [[picture, *values] for picture, values in zip(pictures, _cells(rows, _DECISIONS), strict=True)]
    logger.log_table("gate/decisions", ["image", *_DECISIONS], cells)


def log_curves(logger: RunWandbLogger, decisions: pa.Table) -> None:
    """Log `eval/quality_tokens`, the gate's curve over its thresholds, and `gate/calibration`, its reliability table.

    Args:
        logger: of the run.
        decisions: in the columns of gate_decisions.parquet.
    """
    names = ("probability", "hit_discriminative", "hit_generative", "tokens")
    probability_N = _column(decisions, "probability")
    curve = quality_token_curve(*(_column(decisions, name) for name in names))
    points = np.unique(np.linspace(0, len(curve.threshold) - 1, MAX_POINTS).round().astype(int))
    columns = {name: getattr(curve, name)[points].tolist() for name in vars(curve)}
    logger.log_table("eval/quality_tokens", list(columns), [list(row) for row in zip(*columns.values(), strict=True)])
    label_N = (_column(decisions, "gain") > 0).astype(np.float64)
    bins = [part for part in calibration(probability_N, label_N).bins if part.count]
    logger.log_table("gate/calibration", list(vars(bins[0])), [list(vars(part).values()) for part in bins])


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_pylist())


def _cells(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[list[Any]]:
    """Values by column; long texts are cut."""

    def cell(value: Any) -> Any:
        return value[:MAX_CHARACTERS] if isinstance(value, str) else value

    return [[cell(row[name]) for name in columns] for row in rows]
