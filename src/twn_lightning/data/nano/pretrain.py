"""Pretrain a packaged backbone on captions and CoTs of at most 3 steps, so that the stages have something to teach.

    python -m twn_lightning.data.nano.pretrain --size micro --curriculum grids --steps 1400 --work GRIDS
    python -m twn_lightning.data.nano.pretrain --work GRIDS --export GRIDS/exported
    python -m twn_lightning.data.nano.pretrain --size micro --init-from GRIDS/exported --steps 1000 --work WORK
    python -m twn_lightning.data.nano.pretrain --work WORK --export src/twn_lightning/assets/micro

First grids alone, where reading and following arrows are learned soonest, then all of MMEB-nano. Runs on CPU or GPU
with torch and transformers alone. Every batch is a function of (seed, step), so a resumed run (it resumes by itself)
sees the same data as a straight one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Qwen3VLForConditionalGeneration

from twn_lightning.atomic import whole_file
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.nano.backbones import SHAPES, new_backbone
from twn_lightning.data.nano.card import backbone_card
from twn_lightning.data.nano.curriculum import CURRICULA, sample_pictures, sample_rows
from twn_lightning.data.nano.teacher_forcing import evaluate, response_loss, speed_up_vision
from twn_lightning.environment import hardware
from twn_lightning.errors import ConfigError
from twn_lightning.types import Item

RECORD = "pretraining.json"
"""Beside an exported backbone: what made it, and what it reached."""
CARD = "README.md"
SETTINGS, LOG = "settings.json", "log.jsonl"
"""In a work folder: what is trained, and its losses and scores by step."""
LOGGED_ROWS, RECORDED_ROWS = 100, 500
"""Validation rows of each kind: while training, and for the record of an exported backbone."""


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


def initialise_from(model: Qwen3VLForConditionalGeneration, processor: PromptProcessor, folder: Path) -> None:
    """Take over an exported backbone's weights; words that its tokenizer lacks keep their fresh embeddings.

    Args:
        model: of the same shape, with a vocabulary of its own.
        processor: holds that vocabulary.
        folder: what `export` wrote.

    Raises:
        ConfigError: the folder's backbone is of another size.
    """
    earlier = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    widths = [m.config.text_config.hidden_size for m in (model, earlier)]
    if widths[0] != widths[1]:
        raise ConfigError(
            f"--init-from {folder}: its backbone is {widths[1]} wide, the one to train {widths[0]}. Start from an "
            "export of the same --size"
        )
    known = PromptProcessor.from_folder(folder).tokenizer.get_vocab()
    weights = dict(earlier.state_dict())
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows = model.state_dict()[name].clone()
        for word, row in processor.tokenizer.get_vocab().items():
            if word in known:
                rows[row] = weights[name][known[word]]
        weights[name] = rows
    model.load_state_dict(weights)


class StepRows(Dataset[tuple[list[tuple[Item, str]], list[tuple[Item, str]]]]):
    """Step -> its rows and its single pictures, (prompt item, response) each: a function of (seed, step)."""

    def __init__(self, settings: PretrainSettings) -> None:
        self.settings = settings

    def __len__(self) -> int:
        return self.settings.steps

    def __getitem__(self, step: int) -> tuple[list[tuple[Item, str]], list[tuple[Item, str]]]:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, step])
        rows = sample_rows(rng, settings.batch_size, curriculum=settings.curriculum)
        return rows, sample_pictures(rng, settings.picture_rows, curriculum=settings.curriculum)


def pretrain(
    settings: PretrainSettings,
    work: Path,
    device: str,
    init_from: Path | None = None,
    eval_every: int = 250,
    validation_rows: int = LOGGED_ROWS,
    num_workers: int = 0,
) -> None:
    """Train, log and checkpoint in `work`; continue from its checkpoint where there is one.

    Args:
        settings: of the run.
        work: created if missing.
        device: where to train.
        init_from: folder of an exported backbone of the same size to start from; None: random weights.
        eval_every: steps between validations and checkpoints.
        validation_rows: rows of each kind.
        num_workers: processes that draw rows ahead; 0: drawn in this one.
    """
    work.mkdir(parents=True, exist_ok=True)
    model, processor = new_backbone(settings.size, settings.seed)
    speed_up_vision(model)
    record: dict[str, Any] = {**asdict(settings), "machine": _machine(device), "torch": torch.__version__}
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
    remaining = range(start, settings.steps)
    drawn = DataLoader(StepRows(settings), batch_size=None, sampler=remaining, num_workers=num_workers)
    for step, (rows, cells) in zip(remaining, drawn, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
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
                record |= evaluate(model, processor, device, validation_rows)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                with whole_file(checkpoint) as temporary:
                    torch.save(state | {"seconds": time.monotonic() - began}, temporary)
            record["seconds"] = round(time.monotonic() - began, 1)
            with (work / LOG).open("a") as log:
                log.write(json.dumps({k: round(v, 4) for k, v in record.items()}) + "\n")
            print(record, flush=True)


def _machine(device: str) -> str:
    """The GPU's name, or the processor's with its cores."""
    found = hardware()
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{found['processor']}, {found['cores']} cores"


def export(work: Path, folder: Path, device: str = "cpu", validation_rows: int = RECORDED_ROWS) -> None:
    """Write the checkpoint as a standard Hugging Face folder, weights in fp16, what the run reached, and a card.

    A card that is there already is kept: it may say more.

    Args:
        work: of the run.
        folder: created if missing.
        device: where to validate.
        validation_rows: rows of each kind.
    """
    settings = json.loads((work / SETTINGS).read_text())
    model, processor = new_backbone(settings["size"], 0)
    state = torch.load(work / "checkpoint.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor.save(folder)
    speed_up_vision(model)
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        **settings,
        "steps": state["step"],
        "seconds": round(state["seconds"]),
        "validation_rows": validation_rows,
        "validation": evaluate(model.float().to(device), processor, device, validation_rows),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    if not (folder / CARD).exists():
        (folder / CARD).write_text(backbone_card(record, len(processor.tokenizer)))


def main(arguments: list[str] | None = None) -> None:
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
    parser.add_argument("--num-workers", type=int, default=0, help="processes that draw rows ahead, for a GPU")
    parser.add_argument("--validation-rows", type=int, help="of each kind (default 100; 500 with --export)")
    parser.add_argument("--export", type=Path, help="write the checkpoint as a Hugging Face folder and stop")
    args = parser.parse_args(arguments)
    if args.export:
        export(args.work, args.export, args.device, args.validation_rows or RECORDED_ROWS)
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
    pretrain(
        settings,
        args.work,
        args.device,
        args.init_from,
        validation_rows=args.validation_rows or LOGGED_ROWS,
        num_workers=args.num_workers,
    )


if __name__ == "__main__":
    main()
