"""Teacher-forced losses and scores of an offline backbone on captions and CoTs.

Shape letters: B rows, L padded prompt length, T padded response length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from twn_lightning.backbone.positions import prompt_positions
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.backbone.vision import pack_vision_attention, project_patches_linearly
from twn_lightning.data.nano import tasks, world
from twn_lightning.data.nano.curriculum import CAPTION_KINDS, grid_caption, sample_task_cot
from twn_lightning.types import Item


def speed_up_vision(model: Qwen3VLForConditionalGeneration) -> None:
    """Let the vision tower take all images at once, as `load_backbone` does; the numbers stay the same."""
    pack_vision_attention(model.model.visual)
    project_patches_linearly(model.model.visual)


def response_loss(
    model: Qwen3VLForConditionalGeneration, processor: PromptProcessor, rows: list[tuple[Item, str]], device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher-forced cross-entropy of the responses and their end-of-turn.

    Args:
        model: in training or in evaluation mode.
        processor: of the model.
        rows: (prompt item, response).
        device: where the model is.

    Returns:
        mean loss per row (B,), correct tokens (B, T) and token mask (B, T), both bool.
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
    positions_3BL, end_B = prompt_positions(prompts, processor.patches.merge_size)
    behind_3BT = (end_B[:, None] + torch.arange(width, device=device)).expand(3, -1, -1)
    hidden = model.model(
        input_ids=torch.cat([prompts.input_ids_BL, tokens], 1),
        attention_mask=torch.cat([prompts.attention_mask_BL, mask.long()], 1),
        position_ids=torch.cat([positions_3BL, behind_3BT], -1),
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


@torch.no_grad()
def evaluate(
    model: Qwen3VLForConditionalGeneration, processor: PromptProcessor, device: str, count: int
) -> dict[str, float]:
    """Teacher-forced scores on validation ingredients.

    Args:
        model: is in training mode afterwards.
        processor: of the model.
        device: where the model is.
        count: rows of each kind.

    Returns:
        shares of right caption tokens, and of CoTs right to the last token.
    """
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
