"""What the three stages share: what trains, the optimizer step, validation, and checkpoints without the backbone."""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from twn_lightning.backbone.adapters import full_tensor
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.errors import NumericalError
from twn_lightning.gate import RoutingGate
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.stages.checkpoint_content import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    check_checkpoint,
    exported_settings,
    random_state,
    restore_random_state,
)
from twn_lightning.stages.optim import Group, build_optimizer
from twn_lightning.strategy import AdapterFSDP2Strategy, gather_objects, gathered, rank, shard, sync_gradients


class TWNStage(LightningModule, ABC):
    """A stage: a frozen backbone of which some groups train, by manual optimisation with one AdamW.

    Subclasses set the class variables and implement the abstract methods and `train_dataloader`.

    Args:
        settings: the run, resolved.
        backbone: with the adapters to start from; its `requires_grad` flags are set here, once.
        run_folder: where files beside the checkpoints go.
        data: the run's pairs.
        gate: the routing gate, where one exists; kept in every checkpoint, trained in stage 2 only.
    """

    stage_name: ClassVar[str]
    trained_groups: ClassVar[tuple[str, ...]]
    """Backbone groups that require grad."""
    monitor: ClassVar[tuple[str, Literal["min", "max"]]]
    """The validation value that decides which checkpoint is best."""
    headline: ClassVar[str]
    """The validation value reported before and after the stage."""
    exports: ClassVar[Literal["best", "last"]]
    """Which weights the stage's adapters are exported from."""
    progress_values: ClassVar[tuple[str, ...]]
    """Logged values worth a place beside the progress bar."""

    def __init__(
        self,
        settings: Settings,
        backbone: DualLoRABackbone,
        run_folder: RunFolder,
        data: TWNDataModule,
        gate: RoutingGate | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # the backbone is not in checkpoints; `load_state_dict` is strict about the rest
        self.settings, self.run_folder, self.data = settings, run_folder, data
        self.backbone, self.gate = backbone, gate
        self.threshold = settings.gate.threshold
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.step_values: dict[str, Any] = {}
        self._random_states: list[dict[str, Any]] | None = None
        backbone.train_only(*self.trained_groups)
        if gate is not None:
            gate.requires_grad_(self.stage_name == "gate")
        self.save_hyperparameters({"settings": asdict(settings)})  # plain values: anything else breaks resume

    # --- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    def optimizer_groups(self) -> list[Group]:
        """The parameter groups of the stage's one optimizer."""

    @abstractmethod
    def train_on(self, batch: Any, step: int) -> dict[str, Any]:
        """One training step, backward and optimizer included; returns what to log."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Validation values of the current weights, equal on every rank."""

    @property
    def warmup_ratio(self) -> float:
        return 0.0

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Training batches of the whole stage."""

    @property
    def validation_interval(self) -> int:
        """Training batches between validations."""
        return self.settings.trainer.val_every_steps

    @property
    def steps_done(self) -> int:
        """Training batches that are complete; 0 in the validation before the first one."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return 0 if self.trainer.sanity_checking else progress.processed

    # --- Lightning ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Let the data see rank and world size."""
        self.data.trainer = self.trainer

    def configure_model(self) -> None:
        """Under FSDP2, shard the decoder layers and the rest."""
        if isinstance(self.trainer.strategy, AdapterFSDP2Strategy):
            language_model: Any = self.backbone.model.model.language_model  # type: ignore[union-attr]
            shard(self.backbone, language_model.layers, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.optimizer_groups(), self.warmup_ratio)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        self.train()
        self.trainer.val_check_batch = self.validation_interval
        if self._random_states is not None:  # resumed: what the interrupted run logged later comes again
            self.run_folder.rewind(self.trainer.fit_loop.epoch_loop.batch_progress.current.processed)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The first batch after a resume starts from the random state that its predecessor left."""
        if self._random_states is not None:
            restore_random_state(self._random_states[rank() % len(self._random_states)])
            self._random_states = None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        try:
            values = self.train_on(batch, batch_idx)
        except NumericalError as error:
            raise NumericalError(
                f"stage {self.stage_name}, step {batch_idx + 1}: {error} Start again with a lower learning rate "
                f"(stage.learning_rate={self.settings.stage.learning_rate})."
            ) from error
        self.step_values = values
        done = batch_idx + 1
        if done % self.settings.trainer.log_every_steps == 0 or done == self.total_steps:
            self.record({key: float(value) for key, value in values.items()}, done)

    def record(self, values: dict[str, float], done: int) -> None:
        """Give every logger exactly these values; Lightning's own would repeat those of earlier steps beside them.

        Args:
            values: plain floats, equal on every rank.
            done: training batches that are complete.
        """
        for sink in self.loggers:
            sink.log_metrics(values, done)
        self.log_dict(values, logger=False, batch_size=1)  # for the progress bar and for early stopping

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The last step always validates, whatever the interval."""
        if batch_idx + 1 == self.total_steps:
            self.trainer.val_check_batch = batch_idx + 1

    def val_dataloader(self) -> list[int]:
        """One batch, the whole validation split: `validate` batches for itself."""
        return [0]

    def validation_step(self, batch: int, batch_idx: int) -> None:
        with gathered(self.backbone):
            values = self.validate()
        if not self.before:
            self.before = values
        self.after = values
        self.record(values, self.steps_done)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, behind a check that the loss is finite."""
        if not bool(torch.isfinite(loss)):
            raise NumericalError(f"the loss is {float(loss)}.")
        super().manual_backward(loss, *args, **kwargs)

    # --- the optimizer step ------------------------------------------------------------------------------------------

    def apply_gradients(self, clip_norm: float) -> dict[str, float]:
        """Average gradients over ranks, clip each group, step optimizer and scheduler.

        Groups are clipped one by one: the losses of phi_R and phi_E do not meet, and neither should their norms.
        Groups without any gradient are not in this step (two-phase training).

        Returns:
            `grad_norm/<group>` before clipping, and `lr/<group>`.

        Raises:
            NumericalError: a gradient is NaN or Inf; names the group.
        """
        optimizer: Any = self.optimizers()
        values: dict[str, float] = {}
        for group in optimizer.param_groups:
            if not self.trains_now(group["name"]):
                continue
            sync_gradients(group["params"])
            norm = _norm(nn.utils.clip_grad_norm_(group["params"], clip_norm))
            if not math.isfinite(norm):
                raise NumericalError(f"the gradient norm of group '{group['name']}' is {norm}.")
            values[f"grad_norm/{group['name']}"] = norm
            values[f"lr/{group['name']}"] = group["lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.lr_schedulers().step()
        return values

    def trains_now(self, group: str) -> bool:
        """Whether a parameter group has a part in the current step."""
        return True

    # --- results -----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The stage in three values: the headline metric, before and after. Call after fitting."""
        name = self.headline
        return {"metric": name, "before": self.before.get(name), "after": self.after.get(name)}

    def final_metrics(self) -> dict[str, float]:
        """For metrics.json: the exported weights' values, and the same again as `<name>/before` and `<name>/after`."""
        values = dict(self.after)
        for moment, found in (("before", self.before), ("after", self.after)):
            values |= {f"{key}/{moment}": value for key, value in found.items()}
        return values

    def finish(self) -> None:
        """After training, on the weights to export: what is left to decide or to measure."""

    def export(self) -> None:
        """Write adapters, queries and gate in the released layout. Sharded tensors need every rank; only one's stay."""
        gate_state = None if self.gate is None else {k: v.detach().cpu() for k, v in self.gate.state_dict().items()}
        extra = {} if self.gate is None else {"gate_threshold": self.threshold}
        with tempfile.TemporaryDirectory() as elsewhere:
            folder = self.run_folder.adapters if rank() == 0 else elsewhere
            self.backbone.save_adapters(folder, gate_state, exported_settings(self.settings) | extra)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adapters, queries and gate by plain names, unsharded: the backbone is never in it."""
        state = {f"backbone.{key}": value for key, value in self.backbone.trainable_state().items()}
        if self.gate is not None:
            state |= {f"gate.{key}": full_tensor(value) for key, value in self.gate.state_dict().items()}
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Restore what `state_dict` returned. Strict about every key, whatever Lightning asks for."""
        parts = {part: _under(state_dict, part) for part in ("backbone", "gate")}
        self.backbone.load_trainable_state(parts["backbone"], strict=True)
        if parts["gate"] and self.gate is None:
            self.gate = RoutingGate.from_state(parts["gate"]).requires_grad_(False).to(self.device)
        elif self.gate is not None and parts["gate"]:
            self.gate.load_state(parts["gate"])
        return nn.modules.module._IncompatibleKeys([], [])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "version": CHECKPOINT_VERSION,
            "stage": self.stage_name,
            "backbone": {"name": self.backbone.name, "digest": self.backbone.digest},
            "before": self.before,
            "after": self.after,
            "threshold": self.threshold,
            "random_states": gather_objects(random_state()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what does not belong to this run; note the random states for the first batch.

        Raises:
            CheckpointError: another stage, backbone or version, or not a checkpoint of this package.
        """
        found = check_checkpoint(checkpoint, self.stage_name, self.backbone)
        self.before, self.after = dict(found["before"]), dict(found["after"])
        self.threshold = found["threshold"]
        self._random_states = found["random_states"]


def _under(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def _norm(value: Tensor) -> float:
    return float(full_tensor(value))
