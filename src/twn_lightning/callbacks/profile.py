"""A trace of a few training steps by torch.profiler, and the operators they spent their time on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import ceil
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, record_function

from twn_lightning.atomic import write_text
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.routing_gate_training import RoutingGateTraining

log = logging.getLogger(__name__)

TRACE, TABLE = "trace.json.gz", "top.txt"
WARM_UP = 2
"""Steps before the trace: the first ones allocate and compile."""
MAX_LABEL_BATCHES = 8
"""Of the gate's labelling: a trace holds every operator of every decoded token in memory."""
STEP = "train step"
"""Names a step in the trace; in the table, its row is what Python took between the operators."""
TOP = 15


class ProfileSteps(Callback):
    """Writes `profile/trace.json.gz`, for Perfetto or chrome://tracing, and `profile/top.txt` to the run folder.

    Traces the first process, over steps that follow two others. The gate stage spends its time on labelling queries
    before its first step, so its trace begins there.

    Args:
        run_folder: gets the files.
        steps: how many are traced; fewer where the run ends before.
    """

    def __init__(self, run_folder: RunFolder, steps: int) -> None:
        self.folder = run_folder.path / "profile"
        self.steps = steps
        self._profiler: profile | None = None
        self._span: record_function | None = None
        self._first: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with the labelling, where there is one.

        Raises:
            ConfigError: its trace would not fit in memory.
        """
        assert isinstance(pl_module, TWNStage)
        if isinstance(pl_module, RoutingGateTraining):
            check_labelling(pl_module.settings, trainer.world_size)
            self._begin(trainer, pl_module)
            self._first = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, TWNStage)
        if self._first is None:
            self._first = batch_idx + min(WARM_UP, max(0, pl_module.total_steps - batch_idx - self.steps))
        if batch_idx == self._first and self._profiler is None:
            self._begin(trainer, pl_module)
        if self._profiler is not None:
            self._span = record_function(STEP)
            self._span.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None
        if self._first is not None and batch_idx + 1 >= self._first + self.steps:
            self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run that is interrupted leaves what was traced until then."""
        self._end()

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        activities = [ProfilerActivity.CPU]
        if trainer.strategy.root_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._profiler.start()

    def _end(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / TRACE))
        table = top_operators(profiler.key_averages())
        write_text(self.folder / TABLE, table)
        log.info("%s\ntrace (for Perfetto): %s\ntable: %s", table, self.folder / TRACE, self.folder / TABLE)


def check_labelling(settings: Settings, ranks: int) -> None:
    """Refuse to trace more of the gate's labelling than memory holds.

    Raises:
        ConfigError: more than `MAX_LABEL_BATCHES` batches a process.
    """
    stage: Any = settings.stage
    pairs = (settings.data.gate_pairs, settings.data.calibration_pairs)
    batches = sum(ceil(count / ranks / stage.decode_batch_size) for count in pairs)
    if batches > MAX_LABEL_BATCHES:
        raise ConfigError(
            f"trainer.profile_steps={settings.trainer.profile_steps} would trace the decoding of {sum(pairs):,} "
            f"queries, {batches} batches, and a trace holds at most {MAX_LABEL_BATCHES}: set data.gate_pairs="
            f"{2 * stage.decode_batch_size} and data.calibration_pairs={stage.decode_batch_size}, or use debug=profile"
        )


def top_operators(averages: Iterable[Any], limit: int = TOP) -> str:
    """The most expensive operators: calls, own time on the CPU, own time of their CUDA kernels, share of all.

    Args:
        averages: the profiler's `key_averages()`.
        limit: rows.

    Returns:
        A text table, ordered by CUDA time where there is any, else by CPU time; times in milliseconds.
    """
    rows = [(event.key, event.count, event.self_cpu_time_total, event.self_device_time_total) for event in averages]
    cpu, cuda = sum(row[2] for row in rows), sum(row[3] for row in rows)
    column, total = (3, cuda) if cuda else (2, cpu)
    rows.sort(key=lambda row: row[column], reverse=True)
    width = max([len("operator"), *(min(60, len(row[0])) for row in rows[:limit])])
    lines = [f"{'operator':<{width}}  {'calls':>9}  {'CPU ms':>10}  {'CUDA ms':>10}  {'share':>6}"]
    lines += [
        f"{name[:60]:<{width}}  {calls:>9,}  {on_cpu / 1000:>10.1f}  {on_cuda / 1000:>10.1f}  "
        f"{(on_cpu, on_cuda)[column - 2] / max(total, 1):>6.1%}"
        for name, calls, on_cpu, on_cuda in rows[:limit]
    ]
    lines.append(f"{'all':<{width}}  {sum(row[1] for row in rows):>9,}  {cpu / 1000:>10.1f}  {cuda / 1000:>10.1f}")
    return "\n".join(lines) + "\n"
