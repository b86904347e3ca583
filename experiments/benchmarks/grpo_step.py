"""A whole step of RL, rollout, reward and updates: stage 3 against TRL's GRPOTrainer.

    python -m experiments.benchmarks.grpo_step           # a small random Qwen3-VL; the 2B shape in bf16 on a GPU
    python -m experiments.benchmarks.grpo_step --prompts 4 --tokens 32

Weights, reasoning LoRA, prompts, completions per prompt, updates per rollout, AdamW, clipping and loss (ratios clipped
at .2 / .28, token average, k3 KL to the adapter as it was) are the same, and both read the whole batch in one forward
pass. Prompts are text, since TRL takes images with a Hugging Face processor only. No token ends a completion, so all
have `--tokens`. The reward is the share of even token ids and costs nothing; ours embeds every completion all the same,
as stage 3 does for its own. Ours reads a prompt once for all its completions, so that long prompts favour it. TRL runs
its own loop, and ours takes its turn between two of its rollouts. The first rollout is ours for both, and gives the
gradients that are compared. Writes grpo_step_cuda.json or grpo_step_cpu.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import TrainerCallback

from experiments.benchmarks.pairs import Timing, speedup, write_result
from experiments.benchmarks.random_qwen3vl import random_model
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.data.collate import ContrastiveCollator
from twn_lightning.run import RunFolder
from twn_lightning.settings import (
    AdapterSettings,
    DataSettings,
    InterfaceSettings,
    LoraSettings,
    RLSettings,
    Settings,
)
from twn_lightning.stages import EmbeddingGuidedRL
from twn_lightning.stages.rewards import RewardTerms
from twn_lightning.types import ContrastiveBatch, CotBatch, Item, Pair

OURS, PEER = "ours", "trl"
BAR = 1.3
ADAPTERS = AdapterSettings(reasoning=LoraSettings(32, 64), embedding=LoraSettings(64, 128), dropout=0.0, num_queries=16)
WARM_UPS = 2
"""Rollouts before those that count: one with our completions for both, one that TRL samples."""


def even_share(ids: list[int]) -> float:
    """The reward of a completion."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


def even_shares(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """The rewards, as TRL asks for them."""
    return [even_share(ids) for ids in completion_ids]


class StepAlone(EmbeddingGuidedRL):
    """Stage 3 without a Trainer, rewarded by `even_share`."""

    def __init__(self, settings: Settings, backbone: DualLoRABackbone, folder: str) -> None:
        data: Any = SimpleNamespace(source=None)  # batches are made here
        super().__init__(settings, backbone, RunFolder(folder), data)
        self.adam = torch.optim.AdamW(
            backbone.group_parameters("reasoning"), lr=self.stage.learning_rate, weight_decay=0.0
        )
        self.first_gradients: dict[str, Tensor] = {}

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def apply_gradients(self, clip_norm: float) -> dict[str, float]:
        parameters = self.backbone.adapters.named_parameters("reasoning")
        nn.utils.clip_grad_norm_(list(parameters.values()), clip_norm)
        if not self.first_gradients:
            self.first_gradients = {name: gradient_of(p) for name, p in parameters.items()}
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return {}

    def score(
        self, batch: ContrastiveBatch, cots: CotBatch, embeddings_BD: Tensor, texts: list[str], step: int
    ) -> RewardTerms:
        reward_B = torch.tensor([even_share(ids) for ids in cots.ids_BT.tolist()], device=self.device)
        return RewardTerms(reward_B, *(torch.zeros_like(reward_B) for _ in range(3)))

    def take_step(self, batch: ContrastiveBatch, step: int) -> CotBatch:
        """One rollout and its updates."""
        device = self.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            scored = self.roll_out(batch, step)
            cots = scored.rollout.cots
            for _ in range(self.stage.updates_per_rollout):
                self.update(batch, scored, int(cots.mask_BT.sum()))
        return cots


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.detach().float().clone()


def build_stage(size: str, args: argparse.Namespace, device: torch.device, folder: str) -> StepAlone:
    """Random weights, and a LoRA that is drawn whole, so that it says something at once."""
    model, processor = random_model(size, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    processor.eot_id = -1  # no token ends a completion
    backbone = DualLoRABackbone(model, processor, ADAPTERS, InterfaceSettings(), size).to(device).eval()
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.group_parameters("reasoning"):
            parameter.normal_(0.0, 0.02, generator=generator)
    stage = RLSettings(
        prompts_per_step=args.prompts,
        completions_per_prompt=args.completions,
        chunk_size=args.prompts * args.completions,
        learning_rate=1e-4,
    )
    settings = Settings(stage=stage, data=DataSettings(max_new_tokens=args.tokens))
    return StepAlone(settings, backbone, folder).to(device)


def make_batch(stage: StepAlone) -> ContrastiveBatch:
    """Queries of text, of like length, with a target each."""
    pairs = [
        Pair(Item(f"q{i}", "Find the word.", f"number {i}"), Item(f"c{i}", "", f"word {i}"), "random", f"hash {i}")
        for i in range(stage.stage.prompts_per_step)
    ]
    return ContrastiveCollator(stage.backbone.processor, None)(pairs).to(stage.device)


class Turns(TrainerCallback):
    """Times TRL's rollouts with their updates, and lets ours take a step before each of them.

    Args:
        stage: ours.
        batch: its prompts, which are TRL's too.
    """

    def __init__(self, stage: StepAlone, batch: ContrastiveBatch) -> None:
        self.stage, self.batch = stage, batch
        self.updates = stage.stage.updates_per_rollout
        self.trainer: Any = None
        self.timings = {OURS: Timing(), PEER: Timing()}
        self.cots: list[CotBatch] = []
        self.first_gradients: dict[str, Tensor] = {}
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.updates:
            return
        began = self._now()
        self.cots.append(self.stage.take_step(self.batch, state.global_step))
        self.timings[OURS].seconds.append(self._now() - began)
        self.trainer.rollout_func = None if self.first_gradients else self.our_completions
        self._began = self._now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.first_gradients:
            trained = {name: p for name, p in kwargs["model"].named_parameters() if p.requires_grad}
            self.first_gradients = {plain_name(name): gradient_of(p) for name, p in trained.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.updates == 0:
            self.timings[PEER].seconds.append(self._now() - self._began)

    def our_completions(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What ours sampled last, in TRL's form: its prompts come as often as they are completed."""
        queries, cots = self.batch.queries, self.cots[-1]
        completions = len(cots.ids_BT) // len(queries)
        rows = zip(queries.input_ids_BL, queries.attention_mask_BL.bool(), strict=True)
        ids = [row[mask].tolist() for row, mask in rows for _ in range(completions)]
        return {"prompt_ids": ids, "completion_ids": cots.ids_BT.tolist(), "logprobs": None}

    def _now(self) -> float:
        if self.stage.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def plain_name(name: str) -> str:
    """A LoRA parameter's name without PEFT's wrapper and adapter."""
    return name.removeprefix("base_model.model.").replace(".default.", ".")


def build_trainer(stage: StepAlone, size: str, args: argparse.Namespace, turns: Turns, folder: str) -> Any:
    """TRL's trainer over a model with the same weights and adapter."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    ours, cuda = stage.backbone, stage.device.type == "cuda"
    model, processor = random_model(size, stage.device, torch.bfloat16 if cuda else torch.float32)
    peer: Any = get_peft_model(model, ours.adapters.config("reasoning"))
    theirs = dict(peer.named_parameters())
    with torch.no_grad():
        for name, value in ours.adapters.named_parameters("reasoning").items():
            module, matrix, _ = name.rsplit(".", 2)
            theirs[f"base_model.model.{module}.{matrix}.default.weight"].copy_(value)
    rows, own = args.prompts * args.completions, stage.stage
    config = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows,
        steps_per_generation=1,
        num_generations=args.completions,
        num_iterations=own.updates_per_rollout,
        max_completion_length=args.tokens,
        max_steps=own.updates_per_rollout * (WARM_UPS + args.rounds),
        beta=own.kl,
        epsilon=own.clip_low,
        epsilon_high=own.clip_high,
        use_bias_correction_kl=False,
        learning_rate=own.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=own.clip_norm,
        generation_kwargs={"suppress_tokens": [processor.image_id, processor.video_id, processor.eot_id]},
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=cuda,
        use_cpu=not cuda,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    prompts = [processor.render(pair.query) for pair in turns.batch.pairs]
    trainer = GRPOTrainer(
        model=peer,
        reward_funcs=even_shares,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=processor.tokenizer,
        callbacks=[turns],
    )
    turns.trainer = trainer
    return trainer


def compared(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """The first update's gradients, over all LoRA matrices."""
    assert ours.keys() == theirs.keys(), "both train the same matrices"
    own, peer = (torch.cat([found[name].flatten().double() for name in sorted(ours)]) for found in (ours, theirs))
    return {
        "relative_difference": float((own - peer).norm() / peer.norm()),
        "cosine": float(nn.functional.cosine_similarity(own, peer, dim=0)),
    }


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="qwen3vl_2b" if cuda else "midsize")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--completions", type=int, default=8, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=128 if cuda else 64, help="of each completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        stage = build_stage(args.size, args, device, str(Path(folder) / "ours"))
        turns = Turns(stage, make_batch(stage))
        build_trainer(stage, args.size, args, turns, str(Path(folder) / "trl")).train()
    gradients = compared(stage.first_gradients, turns.first_gradients)
    timings = {name: Timing(timing.seconds[WARM_UPS:]) for name, timing in turns.timings.items()}
    lengths = {int(length) for cots in turns.cots for length in cots.lengths_B}
    result = {
        "model": args.size,
        "prompts": args.prompts,
        "prompt_tokens": int(turns.batch.queries.attention_mask_BL.sum(-1).max()),
        "completions_per_prompt": args.completions,
        "tokens": args.tokens,
        "updates_per_rollout": stage.stage.updates_per_rollout,
        "speedup": speedup(timings[PEER], timings[OURS]),
        "bar": BAR,
        "outputs_agree": gradients["relative_difference"] < (5e-2 if cuda else 1e-3) and lengths == {args.tokens},
        "first_gradients": gradients,
        "timings": {name: timing.record() for name, timing in timings.items()},
    }
    write_result(f"grpo_step_{device.type}", result, args.out)
    print(f"grpo_step: {result['speedup']}, gradients {gradients}")


if __name__ == "__main__":
    main()
