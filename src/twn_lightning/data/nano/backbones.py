"""The offline world's backbones, Qwen3-VL in two sizes: `nano` for two CPU cores, `micro` for one GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.nano import world
from twn_lightning.data.nano.digits import TILE
from twn_lightning.data.nano.vocabulary import build_tokenizer


@dataclass(frozen=True)
class BackboneShape:
    """Layers and widths of both towers; feed-forward layers are three times as wide as their tower."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vision_layers: int
    vision_hidden: int
    vision_heads: int = 4
    head_dim: int = 40


SHAPES = {
    "nano": BackboneShape(4, 160, 4, 2, vision_layers=2, vision_hidden=96),
    "micro": BackboneShape(6, 256, 8, 4, vision_layers=3, vision_hidden=128),
}
"""2.0 and 6.5 M parameters."""


def backbone_config(shape: BackboneShape, vocab_size: int, token_ids: dict[str, int]) -> Qwen3VLConfig:
    """The configuration of a shape over the world's vocabulary."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": shape.hidden,
            "intermediate_size": 3 * shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [8, 6, 6],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": token_ids["<|endoftext|>"],
            "eos_token_id": token_ids["<|im_end|>"],
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": 3 * shape.vision_hidden,
            "num_heads": shape.vision_heads,
            "patch_size": TILE // 2,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": shape.hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def patch_settings() -> PatchSettings:
    """A tile is one visual token: two by two patches, merged."""
    half = (0.5, 0.5, 0.5)
    return PatchSettings(TILE // 2, 2, 2, TILE * TILE, 16 * (world.SIZE * TILE) ** 2, half, half)


def new_backbone(size: str, seed: int) -> tuple[Qwen3VLForConditionalGeneration, PromptProcessor]:
    """A freshly initialised backbone and its processor.

    Args:
        size: a key of SHAPES.
        seed: of the initialisation.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(backbone_config(SHAPES[size], len(tokenizer), tokenizer.get_vocab()))
    return model, PromptProcessor(tokenizer, patch_settings())
