"""Stage 2, routing-gate training (docs/method.md, section 5).

The labels are the model's own outcomes: every query of a split unseen in stage 1 is embedded without and with a greedy
CoT of its own, and thinking is right where it gained more than its tokens cost. Only the gate trains, on features
computed once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from twn_lightning.backbone.encoding import encode
from twn_lightning.data.sources import Split
from twn_lightning.evaluation.output_checks import check_gate
from twn_lightning.evaluation.suite import encode_outcomes
from twn_lightning.gate import (
    CONFORMAL,
    RoutingGate,
    calibrate_threshold,
    conformal_threshold,
    gate_labels,
)
from twn_lightning.metrics import gate_scores, quality_token_curve
from twn_lightning.objectives import gate_binary_cross_entropy
from twn_lightning.settings import GateStageSettings
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.labelled_split import (
    LabelledSplit,
    ShuffledRows,
    decided_examples,
    label_origin,
    save_examples,
)
from twn_lightning.stages.optim import Group
from twn_lightning.strategy import gather_objects, rank, sum_over_ranks, world_size
from twn_lightning.types import EmbeddingMode

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


class RoutingGateTraining(TWNStage):
    """Trains the routing gate on the split `gate`, stops early and calibrates on the split `calibration`.

    A threshold with a guarantee needs queries that have not selected the gate: one half of the split `calibration` then
    stops early and the other calibrates.
    """

    stage_name = "gate"
    trained_groups = ()
    monitor = ("val/loss", "min")
    headline = "gate/auroc"
    exports = "best"
    progress_values = ("train/loss_gate", "gate/auroc", "gate/think_rate")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate: RoutingGate = RoutingGate(2 * self.backbone.hidden_size, self.settings.gate.hidden)
        self._labelled: dict[str, LabelledSplit] = {}

    @property
    def stage(self) -> GateStageSettings:
        return cast(GateStageSettings, self.settings.stage)

    @property
    def total_steps(self) -> int:
        return len(self.rows)

    @property
    def validation_interval(self) -> int:
        return self.rows.steps_per_epoch

    @property
    def rows(self) -> ShuffledRows:
        stage = self.stage
        return ShuffledRows(len(self._labelled["gate"]), stage.batch_size, stage.max_epochs, self.settings.data.seed)

    def optimizer_groups(self) -> list[Group]:
        stage = self.stage
        return [Group("gate", list(self.gate.parameters()), stage.learning_rate, stage.weight_decay, self.total_steps)]

    def configure_callbacks(self) -> list[EarlyStopping]:
        name, mode = self.monitor
        return [EarlyStopping(name, mode=mode, patience=self.stage.patience, check_on_train_epoch_end=False)]

    @property
    def label_folder(self) -> Path:
        return self.run_folder.path / "gate_labels"

    @property
    def examples(self) -> Path:
        """Some queries of the split `calibration`, kept to be looked at."""
        return self.label_folder / "examples.parquet"

    # --- labels ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Record outcomes on both splits, or read them back, and standardise the gate's features."""
        super().setup(stage)
        self.backbone.to(self.trainer.strategy.root_device)
        for split in cast(tuple[Split, ...], ("gate", "calibration")):
            if split not in self._labelled:
                self._labelled[split] = self.recorded(split)
        if "validation" not in self._labelled:
            self._labelled |= self.held_out_parts(self._labelled["calibration"])
        self.gate.standardise_from(self._labelled["gate"].features_NF.to(self.gate.feature_mean.device))
        self._log_labels()

    def held_out_parts(self, split: LabelledSplit) -> dict[str, LabelledSplit]:
        """What selects the gate and what calibrates it: the same queries, or halves of them."""
        if self.settings.gate.calibration not in CONFORMAL:
            return {"validation": split, "calibration": split}
        order_N = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.settings.data.seed))
        half = len(split) // 2
        return {"validation": split.select(order_N[half:]), "calibration": split.select(order_N[:half])}

    def recorded(self, split: Split) -> LabelledSplit:
        """Outcomes of a split, kept in the run folder: decoding is what this stage spends its time on."""
        path, origin = self.label_folder / f"{split}.safetensors", label_origin(self.backbone, self.settings, split)
        if all(gather_objects(path.exists())):
            return LabelledSplit.load(path, origin)
        labelled = self.label(split)
        if rank() == 0:
            labelled.save(path, origin)
        return labelled

    def label(self, split: Split) -> LabelledSplit:
        """Embed a split without and with self-generated CoTs; ranks share the queries."""
        pairs = self.data.pairs(split)
        rows = list(range(rank(), len(pairs), world_size()))
        mine = [pairs[row] for row in rows]
        batch_size, cap = self.stage.decode_batch_size, self.settings.data.max_new_tokens
        encoded = encode(
            self.backbone,
            [pair.query for pair in mine],
            EmbeddingMode.GENERATIVE,
            max_new_tokens=cap,
            batch_size=batch_size,
        )
        outcomes = encode_outcomes(
            self.backbone,
            self.data.source,
            split,
            mine,
            gate=None,
            gate_settings=self.settings.gate,
            batch_size=batch_size,
            max_new_tokens=cap,
            encoded=encoded,
        )
        if split == "calibration" and rank() == 0:
            save_examples(self.examples, rows, outcomes)
        share = LabelledSplit(
            encoded.features_NF,
            torch.tensor([o.loss_discriminative for o in outcomes]),
            torch.tensor([o.loss_generative for o in outcomes]),
            torch.tensor([o.hit_discriminative for o in outcomes]),
            torch.tensor([o.hit_generative for o in outcomes]),
            torch.tensor([o.tokens for o in outcomes]),
        )
        shares = gather_objects((torch.tensor(rows), share))
        order = torch.cat([numbers for numbers, _ in shares]).argsort()
        fields = [part.tensors() for _, part in shares]
        return LabelledSplit(**{key: torch.cat([part[key] for part in fields])[order] for key in fields[0]})

    def labels(self, split: str, kind: Any = "hard") -> Tensor:
        """Think labels of a split (N,). Both splits count a CoT's cost against the training split's mean length."""
        return gate_labels(self.gain(split), kind, soft_scale=self.settings.gate.soft_scale)

    def gain(self, split: str) -> Tensor:
        """What thinking bought less what it cost, (N,)."""
        mean_tokens = max(float(self._labelled["gate"].tokens_N.float().mean()), 1.0)
        return self._labelled[split].gain(self.settings.gate.price, mean_tokens)

    def _log_labels(self) -> None:
        split = self._labelled["gate"]
        logger.info(
            "gate labels: %d queries, thinking is right for %.1f %%; hit@1 %.3f without and %.3f with CoT, %.1f tokens",
            len(split),
            100 * float(self.labels("gate").mean()),
            float(split.hit_discriminative_N.mean()),
            float(split.hit_generative_N.mean()),
            float(split.tokens_N.float().mean()),
        )

    # --- training ----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> ShuffledRows:
        return self.rows

    def train_on(self, batch: list[int], step: int) -> dict[str, Any]:
        """One step on cached features; the mean is over the rows of all ranks."""
        features_BF = self._labelled["gate"].features_NF[batch].to(self.device)
        labels_B = self.labels("gate", self.settings.gate.label)[batch].to(self.device)
        loss = gate_binary_cross_entropy(self.gate(features_BF), labels_B)
        total = float(sum_over_ranks(float(len(batch)), self.device))
        self.manual_backward(loss * len(batch) * world_size() / total)
        return {"train/loss_gate": loss.detach(), **self.apply_gradients(clip_norm=1.0)}

    # --- validation --------------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """Loss, AUROC and ECE against the hard label, and what the gate would do at its threshold."""
        split = self._labelled["validation"]
        probability_N = self.probability("validation")
        with torch.no_grad():
            logits_N = torch.logit(probability_N, eps=1e-6)
            loss = gate_binary_cross_entropy(logits_N, self.labels("validation", self.settings.gate.label))
        scores = gate_scores(
            probability_N.numpy(),
            self.labels("validation").numpy(),
            split.hit_discriminative_N.numpy(),
            split.hit_generative_N.numpy(),
        )
        think_N = probability_N > self.threshold
        hit_N = torch.where(think_N, split.hit_generative_N, split.hit_discriminative_N)
        return {
            "val/loss": float(loss),
            **{f"gate/{name}": value for name, value in scores.items()},
            "gate/think_rate": float(think_N.float().mean()),
            "gate/hit@1_adaptive": float(hit_N.mean()),
            "gate/tokens_per_query": float((think_N * split.tokens_N).float().mean()),
        }

    @torch.no_grad()
    def probability(self, split: str) -> Tensor:
        """The gate's probabilities of thinking (N,), on the CPU."""
        return self.gate(self._labelled[split].features_NF.to(self.gate.feature_mean.device)).sigmoid().cpu()

    def finish(self) -> None:
        """Choose the threshold for the best gate, and measure the gate with it."""
        self.threshold = self.calibrated_threshold()
        self.after = {**self.validate(), "gate/threshold": self.threshold}
        check_gate(self.probability("validation"), self.threshold, self.labels("validation"))

    def calibrated_threshold(self) -> float:
        """The threshold that `gate.calibration` asks for, on the queries kept for it."""
        settings, split = self.settings.gate, self._labelled["calibration"]
        outcomes = (
            self.probability("calibration").numpy(),
            split.hit_discriminative_N.numpy(),
            split.hit_generative_N.numpy(),
            split.tokens_N.numpy(),
        )
        levels = {"quality_tolerance": settings.quality_tolerance, "token_budget": settings.token_budget}
        if settings.calibration in CONFORMAL:
            cap = self.settings.data.max_new_tokens
            return conformal_threshold(settings.calibration, *outcomes, max_tokens=cap, delta=settings.delta, **levels)
        curve = quality_token_curve(*outcomes)
        return calibrate_threshold(curve, settings.calibration, threshold=settings.threshold, **levels)

    def decisions(self) -> pa.Table | None:
        """What the gate decides about a few queries of the split `calibration`, as in gate_decisions.parquet.

        Returns:
            None where the labels are older than this file.
        """
        if not self.examples.exists():
            return None
        self._labelled["examples"] = LabelledSplit.load(self.label_folder / "calibration.safetensors")
        gain_N = self.gain("examples")
        return decided_examples(self.examples, self.probability("examples"), gain_N, self.threshold)
