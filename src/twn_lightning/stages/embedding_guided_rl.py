"""Stage 3, embedding-guided RL (docs/method.md, section 6): GRPO on phi_R; all else is frozen.

A completion is worth what its generative embedding retrieves. The old policy's log-probabilities are those of the
rollout engine that sampled it; the reference is the reasoning adapter as the stage found it.

Shape letters: B completions (prompt-major, groups of G), T completion tokens, C targets, D embedding width, N queries.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.adapters import REFERENCE
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.errors import NumericalError
from twn_lightning.evaluation.output_checks import check_closed
from twn_lightning.gate import RoutingGate
from twn_lightning.metrics import paired_bootstrap_difference
from twn_lightning.objectives import group_advantages, grpo_loss, token_log_probs
from twn_lightning.run import RunFolder
from twn_lightning.settings import RLSettings, Settings
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.checkpoint_content import CHECKPOINT_KEY
from twn_lightning.stages.cot_language import language_values, perplexity_values
from twn_lightning.stages.optim import Group
from twn_lightning.stages.rewards import HeldOutRewards, RewardTerms, TargetPool, distinct_targets, score_completions
from twn_lightning.stages.rollout_engine import Completions, build_rollout_engine, check_log_probs
from twn_lightning.stages.rollouts import (
    CompletionChunk,
    Reading,
    ScoredRollout,
    append_rows,
    completion_chunks,
    rollout_rows,
)
from twn_lightning.strategy import gathered, rank, sum_over_ranks, world_size
from twn_lightning.types import ContrastiveBatch, CotBatch, Rollout

RECORDED_PROMPTS = 2
"""Prompts whose completions go into rollouts.parquet, once per validation interval."""


class EmbeddingGuidedRL(TWNStage):
    """GRPO on the reasoning adapter, rewarded by retrieval."""

    stage_name = "rl"
    trained_groups = ("reasoning",)
    monitor = ("rl/held_out_reward", "max")
    headline = "rl/held_out_reward"
    # Choosing among checkpoints by the queries that the gain is reported on would inflate it.
    exports = "last"
    progress_values = ("rl/reward", "rl/kl", "rl/cot_tokens")

    def __init__(
        self,
        settings: Settings,
        backbone: DualLoRABackbone,
        run_folder: RunFolder,
        data: TWNDataModule,
        gate: RoutingGate | None = None,
    ) -> None:
        backbone.add_reference()
        super().__init__(settings, backbone, run_folder, data, gate)
        self.stage = cast(RLSettings, settings.stage)
        self.pool = TargetPool(
            data.source,
            self.stage.pool_size,
            self.stage.pool_refresh_steps,
            settings.evaluation.batch_size,
            settings.data.seed,
        )
        self.held_out = HeldOutRewards(data, settings)
        self.engine = build_rollout_engine(settings, backbone)
        self.engine_checked = False
        self.rewards_before: list[float] = []
        self.rewards_after: list[float] = []

    @property
    def total_steps(self) -> int:
        return self.stage.max_steps

    def optimizer_groups(self) -> list[Group]:
        stage = self.stage
        updates = stage.max_steps * stage.updates_per_rollout
        parameters = self.backbone.group_parameters("reasoning")
        return [Group("reasoning", parameters, stage.learning_rate, 0.0, updates)]

    def train_dataloader(self) -> Any:
        return self.data.train_dataloader()

    # --- one step ----------------------------------------------------------------------------------------------------

    def train_on(self, batch: ContrastiveBatch, step: int) -> dict[str, Any]:
        self.backbone.eval()  # dropout would tell the policy from its own sampler
        scored = self.roll_out(batch, step)
        if rank() == 0 and (step % self.validation_interval == 0 or step + 1 == self.total_steps):
            rows = rollout_rows(batch.pairs[:RECORDED_PROMPTS], scored)
            append_rows(self.run_folder.rollouts, step + 1, rows)
        num_tokens = int(sum_over_ranks(scored.rollout.cots.mask_BT.sum(), self.device))
        if num_tokens == 0:
            raise NumericalError("every completion is empty: the policy ends its turn at the first token.")
        values = scored.log_values()
        if values["rl/live_groups"] < self.stage.min_live_groups:
            self.skip_updates()
            return values
        updates = [self.update(batch, scored, num_tokens) for _ in range(self.stage.updates_per_rollout)]
        over_tokens = sum(sums for sums, _ in updates) / (num_tokens * len(updates))
        ratio, clip_share, kl = sum_over_ranks(over_tokens, self.device).tolist()
        _, optimizer_values = updates[-1]
        return {**values, "rl/ratio": ratio, "rl/clip_share": clip_share, "rl/kl": kl, **optimizer_values}

    def skip_updates(self) -> None:
        """Leave the weights alone where hardly a group has anything to teach: Adam would scale noise to full steps."""
        with warnings.catch_warnings():
            # torch takes skipped first updates for a scheduler that steps before its optimizer.
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step", UserWarning)
            for _ in range(self.stage.updates_per_rollout):
                self.lr_schedulers().step()

    @torch.no_grad()
    def roll_out(self, batch: ContrastiveBatch, step: int) -> ScoredRollout:
        """Sample completions of the batch's queries and reward them."""
        stage = self.stage
        with gathered(self.backbone):
            self.engine.take_weights(step)
            items = [pair.query for pair in batch.pairs]
            sampled = self.engine.generate(batch.queries, items, self.sampling_generator(step))
            if not self.engine_checked:
                self.check_engine(batch, sampled)
            by_reference = stage.reward_reader == "reference"
            with self.backbone.pin(REFERENCE):
                reference = self.read_again(batch, sampled.cots, embed=by_reference)
            embeddings_BD = reference.embeddings_BD if by_reference else self.embeddings(batch, sampled)
            texts = self.backbone.processor.decode_cots(sampled.cots)
            terms = self.score(batch, sampled.cots, cast(Tensor, embeddings_BD), texts, step)
        groups = group_advantages(terms.reward, stage.completions_per_prompt, scale=stage.advantage_scale)
        rollout = Rollout(
            sampled.cots, sampled.log_probs_BT, stage.completions_per_prompt, terms.reward, groups.advantages_B
        )
        return ScoredRollout(rollout, reference.log_probs_BT, terms, texts, groups.degenerate_groups)

    def sampling_generator(self, step: int) -> torch.Generator:
        """Random numbers of one step, for all ranks: a resumed run samples what a straight one does."""
        seed = np.random.SeedSequence([self.settings.seed, step, 0]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(seed >> np.uint64(1)))

    def check_engine(self, batch: ContrastiveBatch, sampled: Completions) -> None:
        """Compare the engine with the policy: in the first rollout of a process, so after every resume, too."""
        own = self.read_again(batch, sampled.cots)
        mask_BT = sampled.cots.mask_BT
        check_log_probs(sampled.log_probs_BT, own.log_probs_BT, mask_BT, own.dtype, self.stage.rollout_engine)
        self.engine_checked = True

    def embeddings(self, batch: ContrastiveBatch, sampled: Completions) -> Tensor | None:
        """Generative embeddings (B, D) from the policy's caches: the engine's where it has them, else our own."""
        if sampled.state is None:
            return self.read_again(batch, sampled.cots, embed=True).embeddings_BD
        return self.backbone.embed(sampled.state, ["generative"]).generative_BD

    def read_again(self, batch: ContrastiveBatch, cots: CotBatch, *, embed: bool = False) -> Reading:
        """What the pinned reasoner makes of completions, and, if `embed`, the embedder of its caches."""
        log_probs_BT = torch.zeros(cots.ids_BT.shape, device=self.device)
        embeddings = []
        for chunk in self.chunks(batch, cots):
            state = self.read(chunk)
            chunk.of(log_probs_BT).copy_(self.log_probs(cast(Tensor, state.cot_logits_BTV), chunk.cots))
            if embed:
                embeddings.append(cast(Tensor, self.backbone.embed(state, ["generative"]).generative_BD))
        return Reading(log_probs_BT, torch.cat(embeddings) if embed else None, state.layers[0][1].dtype)

    def read(self, chunk: CompletionChunk) -> ReasonerState:
        """Pass R over a chunk: every prompt once, every completion after it."""
        completions = self.stage.completions_per_prompt
        return self.backbone.reason(chunk.prompts, chunk.cots, want_logits=True, completions=completions)

    def reader(self) -> AbstractContextManager[None]:
        """Whose caches the targets' embeddings are read from."""
        return self.backbone.pin(REFERENCE) if self.stage.reward_reader == "reference" else nullcontext()

    def score(
        self, batch: ContrastiveBatch, cots: CotBatch, embeddings_BD: Tensor, texts: list[str], step: int
    ) -> RewardTerms:
        """Rank completions against the targets of all ranks' batches, encoded now, and the rest of the task's pool."""
        taken = [item for pair in batch.pairs for item in (pair.positive, *pair.hard_negatives)]
        with self.reader():
            state = self.backbone.reason(batch.candidates)
            own_CD = cast(Tensor, self.backbone.embed(state, ["discriminative"]).discriminative_BD)
            rivals_CD = self.pool.rivals(self.backbone, batch.source, step, taken).to(own_CD)
        targets_CD, hash_C = distinct_targets(own_CD, batch.target_hash_C)
        is_own_BC = batch.target_hash_Q.repeat_interleave(self.stage.completions_per_prompt)[:, None] == hash_C
        valid_BC = torch.cat([~is_own_BC, is_own_BC.new_ones(len(is_own_BC), len(rivals_CD))], dim=1)
        return score_completions(
            embeddings_BD,
            torch.cat([targets_CD, rivals_CD]),
            is_own_BC.int().argmax(1),
            valid_BC,
            texts,
            cots.closed_B,
            self.stage,
        )

    # --- the updates -------------------------------------------------------------------------------------------------

    def update(
        self, batch: ContrastiveBatch, scored: ScoredRollout, num_tokens: int
    ) -> tuple[Tensor, dict[str, float]]:
        """One optimizer step on the rollout; `num_tokens` are the step's over all ranks.

        Returns:
            Sums over this rank's tokens of ratio, clipped and k3 KL (3,), and the optimizer's values.
        """
        stage = self.stage
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for chunk in self.chunks(batch, scored.rollout.cots):
            state = self.read(chunk)
            output = grpo_loss(
                self.log_probs(cast(Tensor, state.cot_logits_BTV), chunk.cots),
                chunk.of(scored.rollout.log_probs_BT),
                scored.advantages_B[chunk.rows],
                chunk.cots.mask_BT,
                clip_low=stage.clip_low,
                clip_high=stage.clip_high,
                reference_log_probs_BT=chunk.of(scored.reference_log_probs_BT),
                kl_weight=stage.kl,
                num_tokens=num_tokens,
            )
            self.manual_backward(world_size() * output.loss)  # gradients are averaged over ranks, the loss is a sum
            sums += output.num_tokens * torch.stack([output.ratio, output.clip_share, output.kl]).detach()
        return sums, self.apply_gradients(stage.clip_norm)

    def log_probs(self, cot_logits_BTV: Tensor, cots: CotBatch) -> Tensor:
        """Log-probabilities (B, T) of the sampled tokens, as the decoder reports them."""
        return token_log_probs(cot_logits_BTV[:, :-1], cots.ids_BT, temperature=self.stage.sampling_temperature)

    def chunks(self, batch: ContrastiveBatch, cots: CotBatch) -> Iterator[CompletionChunk]:
        return completion_chunks(batch.queries, cots, self.stage.completions_per_prompt, self.stage.chunk_size)

    # --- validation and checkpoints ----------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        records = self.held_out.measure(self.backbone)
        if rank() == 0:
            append_rows(self.run_folder.held_out, self.steps_done, records)
        self.rewards_after = [record.reward for record in records]
        self.rewards_before = self.rewards_before or self.rewards_after
        cots = [record.cot for record in records]
        malformed = float(np.mean([record.malformed for record in records]))
        check_closed(sum(r.malformed for r in records), len(records), self.settings.data.max_new_tokens, "validation")
        return {
            "rl/held_out_reward": float(np.mean(self.rewards_after)),
            "val/hit@1_discriminative": float(np.mean([record.hit_discriminative for record in records])),
            "val/hit@1_generative": float(np.mean([record.hit_generative for record in records])),
            "val/cot_tokens": float(np.mean([record.tokens for record in records])),
            "val/malformed_cot_rate": malformed,
            **language_values(cots),
            **perplexity_values(self.backbone, self.data.pairs("val"), cots),
        }

    def final_metrics(self) -> dict[str, float]:
        """Those of every stage, and the gain in held-out reward with its paired bootstrap interval."""
        values = super().final_metrics()
        if self.rewards_after:
            samples = self.settings.evaluation.bootstrap_samples
            gain = paired_bootstrap_difference(self.rewards_after, self.rewards_before, samples=samples)
            values |= {
                "rl/held_out_gain": gain.mean,
                "rl/held_out_gain/ci95_low": gain.low,
                "rl/held_out_gain/ci95_high": gain.high,
            }
        return values

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        rewards = {"before": self.rewards_before, "after": self.rewards_after}
        checkpoint[CHECKPOINT_KEY] |= {"pool": self.pool.state_dict(), "rewards": rewards}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        found = checkpoint[CHECKPOINT_KEY]
        self.pool.load_state_dict(found["pool"])
        self.rewards_before, self.rewards_after = list(found["rewards"]["before"]), list(found["rewards"]["after"])
