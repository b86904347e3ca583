"""The checks that watch training (see `twn doctor --checks`): gradients, losses, rows, duplicates, ranks, CoTs."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from twn_lightning import checks
from twn_lightning.backbone.adapters import full_tensor
from twn_lightning.callbacks.row_checks import BatchRows, check_duplicates
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.cot_language import LETTERS, PERPLEXITY, REPETITIVE
from twn_lightning.strategy import gather_objects, world_size

GRADIENT_PATIENCE = 20
"""Updates within which every trained tensor must have received a gradient: LoRA's first factor gets none at first."""
LOSS_WINDOW, FEWEST_LOSSES = 50, 20
SPIKE_DEVIATIONS, SMALLEST_SPIKE = 8.0, 0.5
"""A spike is so many standard deviations of the noise above the median, and so many nats, and half of the median."""
LARGEST_WEIGHT_DIFFERENCE = 1e-6
MOST_REPETITIVE, LARGEST_LETTER_CHANGE, LARGEST_PERPLEXITY_RATIO = 0.2, 0.1, 3.0


class RunChecks(Callback):
    """Runs them all; each can be switched off."""

    def __init__(self) -> None:
        self.gradients = GradientWatch()
        self.losses = LossWatch()
        self.rows: BatchRows | None = None
        self.done: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TWNStage)
        self.gradients = GradientWatch({id(p): name for name, p in pl_module.named_parameters()})
        self.losses = LossWatch()
        self.rows = self.done = None
        if checks.is_on("duplicates") and pl_module.stage_name != "gate":  # which trains on no pairs
            check_duplicates(pl_module.data)
        if checks.is_on("batch_rows"):
            self.rows = BatchRows(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.rows is not None:
            self.rows.check(batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, TWNStage)
        for group in optimizer.param_groups:
            if pl_module.trains_now(group["name"]):
                self.gradients.check(group)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TWNStage)
        self.done = batch_idx + 1
        if checks.is_on("loss_spike"):
            self.losses.check(pl_module.step_values, batch_idx + 1, getattr(batch, "source", None))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TWNStage)
        if world_size() > 1 and checks.is_on("ranks_agree"):
            check_ranks(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TWNStage)
        if not trainer.sanity_checking:
            check_language(pl_module.before, pl_module.after)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TWNStage)
        wanted = pl_module.total_steps
        if self.done is not None and self.done < wanted and not trainer.should_stop:
            checks.report(
                "batch_rows",
                f"the loader ended after {self.done} of {wanted} batches: the rest of the samples was dropped, and "
                "the learning rate never came down. Resume from the last checkpoint, with the loader repaired",
            )


class GradientWatch:
    """Waits until every trained tensor has received a gradient that is not zero.

    Args:
        names: of the parameters, by `id`.
    """

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        self.names = names or {}
        self._updates: dict[str, int] = defaultdict(int)
        self._waiting: dict[str, list[torch.nn.Parameter]] = {}

    def check(self, group: Mapping[str, Any]) -> None:
        """Look at the gradients of a parameter group before an update.

        Raises:
            CheckError: tensors of the group had none in `GRADIENT_PATIENCE` updates; names them.
        """
        name = group["name"]
        waiting = self._waiting.setdefault(name, list(group["params"]))
        if not waiting or self._updates[name] >= GRADIENT_PATIENCE:
            return
        self._updates[name] += 1
        self._waiting[name] = waiting = [p for p in waiting if p.grad is None or not _any(p.grad)]
        if waiting and self._updates[name] == GRADIENT_PATIENCE:
            named = ", ".join(self.names.get(id(p), "unnamed") for p in waiting[:3])
            checks.report(
                "adapter_gradients",
                f"{len(waiting)} of {len(group['params'])} tensors of group '{name}' had no gradient in "
                f"{GRADIENT_PATIENCE} updates and stay as they are: {named}{', ...' if len(waiting) > 3 else ''}. A "
                "loss weight of 0, an interface that cuts the graph, or LoRA on modules that are not used leads to it",
            )


def _any(gradient: torch.Tensor) -> bool:
    largest = torch.linalg.vector_norm(gradient, math.inf)
    return bool(full_tensor(largest) if isinstance(largest, DTensor) else largest)


class LossWatch:
    """Keeps the last values of every loss of a step, by the source of its batch.

    A rare, hard source is no spike, nor is one hard batch: what diverges is still high at the next one.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str | None, str], deque[float]] = defaultdict(lambda: deque(maxlen=LOSS_WINDOW))
        self._was_high: dict[tuple[str | None, str], bool] = defaultdict(bool)

    def check(self, values: Mapping[str, Any], step: int, source: str | None = None) -> None:
        """Compare the losses of a step with those before it, and the KL divergence in stage 3.

        Args:
            values: what the step logs; numbers or tensors.
            step: training batches that are complete.
            source: of the batch.
        """
        for name in values:
            if not name.startswith("train/loss") and name != "rl/kl":
                continue
            value, earlier = float(values[name]), self._values[source, name]
            if len(earlier) >= FEWEST_LOSSES:
                middle = median(earlier)
                # From step to step, so that a falling loss does not count as noise.
                deviation = 1.4826 / math.sqrt(2) * median(abs(b - a) for a, b in pairwise(earlier))
                high = value - middle > max(SPIKE_DEVIATIONS * deviation, SMALLEST_SPIKE, 0.5 * abs(middle))
                if high and self._was_high[source, name]:
                    checks.report(
                        "loss_spike",
                        f"step {step}: {name} is {value:.3f}, and was {earlier[-1]:.3f} the step before; the median of "
                        f"the last {len(earlier)} steps{f' on {source}' if source else ''} is {middle:.3f}. If it does "
                        "not come down again, resume from an earlier checkpoint with a lower stage.learning_rate or "
                        "stage.clip_norm",
                    )
                self._was_high[source, name] = high
            earlier.append(value)


def check_ranks(stage: TWNStage) -> None:
    """Compare all ranks' steps and trained weights.

    Raises:
        CheckError: a rank differs from the first; names it.
    """
    whole = [p.detach().double() for p in stage.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    weight = float(torch.stack([p.abs().sum() for p in whole]).sum()) if whole else 0.0
    (first_step, first_weight), *others = gather_objects((stage.steps_done, weight))
    for rank, (step, weight) in enumerate(others, start=1):
        if step != first_step or abs(weight - first_weight) > LARGEST_WEIGHT_DIFFERENCE * abs(first_weight):
            checks.report(
                "ranks_agree",
                f"rank {rank} is at step {step} with trained weights of absolute sum {weight:.9g}, rank 0 at step "
                f"{first_step} with {first_weight:.9g}: they train different models. Resume from the last checkpoint",
            )


def check_language(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Compare the CoTs of a validation with those before training."""
    found = []
    if after.get(REPETITIVE, 0.0) > max(MOST_REPETITIVE, 2 * before.get(REPETITIVE, 0.0)):
        found.append(f"{100 * after[REPETITIVE]:.0f} % of them repeat a passage")
    if abs(after.get(LETTERS, 0.0) - before.get(LETTERS, after.get(LETTERS, 0.0))) > LARGEST_LETTER_CHANGE:
        found.append(
            f"the share of Latin letters went from {100 * before[LETTERS]:.0f} to {100 * after[LETTERS]:.0f} %"
        )
    if after.get(PERPLEXITY, 0.0) > LARGEST_PERPLEXITY_RATIO * before.get(PERPLEXITY, math.inf):
        found.append(f"the backbone's perplexity on them went from {before[PERPLEXITY]:.1f} to {after[PERPLEXITY]:.1f}")
    if found:
        checks.report(
            "cot_language",
            f"the validation CoTs are no longer the language of the start: {'; '.join(found)}. Read some in "
            "rollouts.parquet or with `twn preview`; raise stage.kl, or lower stage.learning_rate",
        )
