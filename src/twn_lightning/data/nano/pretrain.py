"""Pretrain the nano backbone on captions and CoTs of at most 3 steps, so that the stages have something to teach.

    python -m twn_lightning.data.nano.pretrain --curriculum grids --steps 1400 --work outputs/pretrain-grids
    python -m twn_lightning.data.nano.pretrain --init-from GRIDS --steps 1200 --work outputs/pretrain-nano
    python -m twn_lightning.data.nano.pretrain --work outputs/pretrain-nano --export src/twn_lightning/assets/nano

First grids alone, where reading and following arrows are learned soonest, then all of MMEB-nano. Runs on CPU or GPU
with torch and transformers alone. Every batch is a function of (seed, step), so a resumed run (it resumes by itself)
sees the same data as a straight one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.nano import tasks, world
from twn_lightning.data.nano.backbones import SHAPES, new_backbone
from twn_lightning.data.nano.curriculum import (
    CAPTION_KINDS,
    CURRICULA,
    grid_caption,
    sample_pictures,
    sample_rows,
    sample_task_cot,
)
from twn_lightning.types import Item

RECORD = "pretraining.json"
"""Beside an exported backbone: what made it, and what it reached."""
SETTINGS = "settings.json"


@dataclass(frozen=True)
class PretrainSettings:
    """One pretraining run; recorded on the card."""

    size: str = "nano"
    curriculum: str = "mmeb_nano"
    steps: int = 1200
    batch_size: int = 128
    picture_rows: int = 32
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0


def response_loss(
    model: Qwen3VLForConditionalGeneration, processor: PromptProcessor, rows: list[tuple[Item, str]], device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher-forced cross-entropy of the responses and their end-of-turn.

    Returns:
        mean loss per row (B,), correct tokens (B, T+1), token mask (B, T+1).
    """
    prompts = processor([item for item, _ in rows]).to(device)
    ids = [processor.tokenizer(text)["input_ids"] + [processor.eot_id] for _, text in rows]
    width = max(map(len, ids))
    targets = torch.full((len(rows), width), -100)
    for i, row in enumerate(ids):
        targets[i, : len(row)] = torch.tensor(row)
    targets = targets.to(device)
    mask = targets != -100
    tokens = torch.where(mask, targets, processor.pad_id)
    hidden = model.model(
        input_ids=torch.cat([prompts.input_ids_BL, tokens], 1),
        attention_mask=torch.cat([prompts.attention_mask_BL, mask.long()], 1),
        mm_token_type_ids=torch.cat([prompts.mm_token_type_ids_BL, torch.zeros_like(tokens)], 1),
        pixel_values=prompts.pixel_values,
        image_grid_thw=prompts.image_grid_thw,
        pixel_values_videos=prompts.pixel_values_videos,
        video_grid_thw=prompts.video_grid_thw,
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden[:, -width - 1 : -1])
    losses = nn.functional.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")
    return losses.sum(1) / mask.sum(1), (logits.argmax(-1) == targets) & mask, mask


def backward(
    model: Qwen3VLForConditionalGeneration,
    processor: PromptProcessor,
    rows: list[tuple[Item, str]],
    weight: float,
    device: str,
) -> Tensor:
    """Gradients of the rows' summed losses times a weight; returns the losses (B,).

    Videos, whose prompts are long, go apart.
    """
    losses = torch.zeros(len(rows))
    is_video = [any(media.kind == "video" for media in item.media) for item, _ in rows]
    for video in sorted(set(is_video)):
        chosen = [i for i, flag in enumerate(is_video) if flag == video]
        found, _, _ = response_loss(model, processor, [rows[i] for i in chosen], device)
        (weight * found.sum()).backward()
        losses[chosen] = found.detach().cpu()
    return losses


def learning_rate_at(step: int, settings: PretrainSettings) -> float:
    """Warm-up, constant, then a linear fall over the last quarter: a running job can be given fewer or more steps."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    fall = 0.25 * settings.steps
    return settings.learning_rate * min(1.0, 0.02 + (settings.steps - step) / fall)


@torch.no_grad()
def evaluate(
    model: Qwen3VLForConditionalGeneration, processor: PromptProcessor, device: str, count: int = 100
) -> dict[str, float]:
    """Teacher-forced scores on validation ingredients: caption tokens, and CoTs right to the last token."""
    model.eval()
    rng = np.random.default_rng(99)
    scores: dict[str, float] = {}
    captions = {kind: [tasks.sample_caption(rng, "val", kind) for _ in range(count)] for kind in CAPTION_KINDS}
    captions["grid"] = [grid_caption(rng, "val") for _ in range(count)]
    for kind, rows in captions.items():
        _, correct, mask = response_loss(model, processor, rows, device)
        scores[f"caption_{kind}"] = float(correct.sum() / mask.sum())
    cases = {f"cot_{steps}": ("follow" if steps else "read", steps) for steps in (0, 1, 2, 3, 5, 8)}
    for name, (task, steps) in (cases | {"cot_sum": ("sum", 2), "cot_largest": ("largest", 2)}).items():
        questions = [world.sample_question(rng, "val", task, steps) for _ in range(count)]
        rows = [(world.query_item(q, str(i)), q.cot) for i, q in enumerate(questions)]
        scores[name] = _exact(model, processor, rows, device)
    for task in tasks.TASKS:
        rows = [sample_task_cot(rng, "val", task) for _ in range(count)]
        scores[f"cot_{task}"] = _exact(model, processor, rows, device)
    model.train()
    return scores


def _exact(
    model: Qwen3VLForConditionalGeneration, processor: PromptProcessor, rows: list[tuple[Item, str]], device: str
) -> float:
    """Share of responses whose every token is right."""
    _, correct, mask = response_loss(model, processor, rows, device)
    return float((correct == mask).all(1).float().mean())


def initialise_from(model: Qwen3VLForConditionalGeneration, processor: PromptProcessor, folder: Path) -> None:
    """Take over an exported backbone's weights; words that its tokenizer lacks keep their fresh embeddings.

    Args:
        model: of the same shape, with a vocabulary of its own.
        processor: holds that vocabulary.
        folder: what `export` wrote.
    """
    earlier = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    known = PromptProcessor.from_folder(folder).tokenizer.get_vocab()
    weights = dict(earlier.state_dict())
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows = model.state_dict()[name].clone()
        for word, row in processor.tokenizer.get_vocab().items():
            if word in known:
                rows[row] = weights[name][known[word]]
        weights[name] = rows
    model.load_state_dict(weights)


def pretrain(
    settings: PretrainSettings, work: Path, device: str, init_from: Path | None = None, eval_every: int = 250
) -> None:
    """Train, log to `log.jsonl` and checkpoint in `work`; continue from its checkpoint where there is one."""
    work.mkdir(parents=True, exist_ok=True)
    model, processor = new_backbone(settings.size, settings.seed)
    record: dict[str, Any] = asdict(settings)
    if init_from is not None:
        initialise_from(model, processor, init_from)
        record["initialised_from"] = json.loads((init_from / RECORD).read_text())
    (work / SETTINGS).write_text(json.dumps(record, indent=2) + "\n")
    model.to(device).train()
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    checkpoint, start, seconds = work / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds = state["step"], state["seconds"]
    began = time.monotonic() - seconds
    for step in range(start, settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        rows = sample_rows(rng, settings.batch_size, curriculum=settings.curriculum)
        cells = sample_pictures(rng, settings.picture_rows, curriculum=settings.curriculum)
        # Captions and CoTs weigh the same, pictures half.
        losses = backward(model, processor, rows, 2 / len(rows), device)
        pictures = backward(model, processor, cells, 0.5 / len(cells), device).mean()
        captions, cots = losses[::2].mean(), losses[1::2].mean()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 25 == 0 or done == settings.steps:
            record = {"step": done, "caption": captions.item(), "cot": cots.item(), "picture": pictures.item()}
            if done % eval_every == 0 or done == settings.steps:
                record |= evaluate(model, processor, device)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                torch.save(state | {"seconds": time.monotonic() - began}, work / "checkpoint.tmp")
                os.replace(work / "checkpoint.tmp", checkpoint)
            record["seconds"] = round(time.monotonic() - began, 1)
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps({k: round(v, 4) for k, v in record.items()}) + "\n")
            print(record, flush=True)


def export(work: Path, folder: Path) -> None:
    """Write the checkpoint as a standard Hugging Face folder, weights in fp16, and what the run reached."""
    settings = json.loads((work / SETTINGS).read_text())
    model, processor = new_backbone(settings["size"], 0)
    state = torch.load(work / "checkpoint.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor.save(folder)
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        **settings,
        "steps": state["step"],
        "seconds": round(state["seconds"]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "validation": evaluate(model.float(), processor, "cpu", count=500),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and the log")
    parser.add_argument("--size", choices=SHAPES, default=PretrainSettings.size)
    parser.add_argument("--curriculum", choices=CURRICULA, default=PretrainSettings.curriculum)
    parser.add_argument("--init-from", type=Path, help="folder of an exported backbone to start from")
    parser.add_argument("--learning-rate", type=float, default=PretrainSettings.learning_rate)
    parser.add_argument("--warmup", type=int, default=PretrainSettings.warmup)
    parser.add_argument("--steps", type=int, default=PretrainSettings.steps)
    parser.add_argument("--batch-size", type=int, default=PretrainSettings.batch_size)
    parser.add_argument("--seed", type=int, default=PretrainSettings.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", type=Path, help="write the checkpoint as a Hugging Face folder and stop")
    args = parser.parse_args()
    if args.export:
        export(args.work, args.export)
        return
    settings = PretrainSettings(
        args.size,
        args.curriculum,
        args.steps,
        args.batch_size,
        learning_rate=args.learning_rate,
        warmup=args.warmup,
        seed=args.seed,
    )
    pretrain(settings, args.work, args.device, args.init_from)


if __name__ == "__main__":
    main()
