"""Qwen3-VL with random weights, in the true shapes of its sizes: speed and memory do not depend on what weights say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from twn_lightning.backbone.parameters import SHAPES, LanguageModelShape
from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.patches import CHANNELS, Patches
from twn_lightning.types import PromptBatch

PATCH = 16
FRAMES = 2
"""Of a temporal patch."""
MERGE = 2
MIDSIZE = LanguageModelShape(256, 6, 8, 4, 32, 768, 8192, True)
"""Large enough for a CPU's arithmetic to count, small enough for minutes."""
SIZES = {"midsize": MIDSIZE, **SHAPES}


def qwen3vl_config(size: str, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """The configuration of a size, with the special tokens of a tokenizer.

    Args:
        size: `midsize`, `qwen3vl_2b`, `qwen3vl_4b` or `qwen3vl_8b` (whose vision tower is given the smaller ones').
        tokenizer: its ids must be below the size's vocabulary.
    """
    shape, ids = SIZES[size], tokenizer.get_vocab()
    real = size != "midsize"
    half = shape.head_dim // 2
    sections = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    vision = (24, 1024, 4096, 16, [5, 11, 17]) if real else (4, 256, 1024, 4, [1])
    depth, hidden, intermediate, heads, deepstack = vision
    return Qwen3VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": shape.tied_embeddings,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": depth,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_heads": heads,
            "patch_size": PATCH,
            "temporal_patch_size": FRAMES,
            "spatial_merge_size": MERGE,
            "out_hidden_size": shape.hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": deepstack,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape.tied_embeddings,
    )


@torch.no_grad()
def random_model(
    size: str, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> tuple[Qwen3VLForConditionalGeneration, PromptProcessor]:
    """A model with weights drawn on its device, in eval mode, and a processor with a byte-level tokenizer.

    Args:
        size: as in `qwen3vl_config`.
        device: where the weights are drawn; the 4B language model takes seconds on a GPU.
        dtype: of the weights.
        seed: of the weights.
    """
    tokenizer = tiny_tokenizer()
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(qwen3vl_config(size, tokenizer)).to(dtype)
    model = model.to_empty(device=device)
    model.tie_weights()
    draw_weights(model, seed)
    half = (0.5, 0.5, 0.5)
    pixels = (PATCH * MERGE) ** 2
    patches = PatchSettings(PATCH, MERGE, FRAMES, pixels, 1024 * pixels, half, half)
    return model.eval(), PromptProcessor(tokenizer, patches)


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Normal weights of standard deviation .02, norms of 1, biases of 0; buffers as their modules compute them."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
    for module in model.modules():
        if hasattr(module, "inv_freq"):  # rotary embeddings: not among the parameters, and float32 in every model
            fresh = type(module)(module.config)
            module.inv_freq = fresh.inv_freq.to(device)
            module.original_inv_freq = fresh.original_inv_freq.to(device)


def image_prompts(
    model: Qwen3VLForConditionalGeneration, images: list[tuple[int, int]], text_tokens: int, device: torch.device | str
) -> PromptBatch:
    """Prompts of one image each, left-padded, of random pixels and tokens.

    Args:
        model: for its special tokens.
        images: rows and columns of patches of each image.
        text_tokens: text tokens of each prompt, before and behind the image.
        device: where the batch goes.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    visual = [rows * columns // MERGE**2 for rows, columns in images]
    length = max(visual) + text_tokens
    ids_BL = torch.randint(5, 256, (len(images), length), generator=generator)
    mask_BL, types_BL = torch.ones_like(ids_BL), torch.zeros_like(ids_BL)
    for row, tokens in enumerate(visual):
        first = length - text_tokens // 2 - tokens
        types_BL[row, first : first + tokens] = 1
        mask_BL[row, : length - text_tokens - tokens] = 0
    ids_BL[types_BL == 1] = config.image_token_id
    grids = torch.tensor([(1, rows, columns) for rows, columns in images])
    size = (int(grids.prod(-1).sum()), CHANNELS * PATCH**2)
    pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    half = (0.5, 0.5, 0.5)
    patches = Patches(pixels, grids, half, half, repeats=FRAMES)
    counts = {"images_per_row": (1,) * len(images), "videos_per_row": (0,) * len(images)}
    return PromptBatch(ids_BL, mask_BL, types_BL, patches, **counts).to(device)
