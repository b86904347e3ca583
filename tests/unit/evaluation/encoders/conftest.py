"""Random checkpoints in the shape of other embedders, and items of every kind of input."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from tests.support.tiny_adapters import random_backbone
from twn_lightning.backbone import encoding
from twn_lightning.backbone.decoding import Decoded, decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.tiny import PATCH, tiny_config, tiny_tokenizer
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.types import Item, Media

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FACTOR = 2 * PATCH
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Stored:
    """An encoded image in a row of another file."""

    content: bytes
    name: str = "corpus.parquet row 0"

    def read(self) -> bytes:
        return self.content


def peer_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<disc_emb>", "<gen_emb>")])
    return tokenizer


def _config(architecture: str, tokenizer: PreTrainedTokenizerFast) -> object:
    if architecture == "qwen3_vl":
        return tiny_config(tokenizer)
    ids = tokenizer.get_vocab()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": None,
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": 2}
    shared = {
        "text_config": text,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,  # a tied random head only repeats its input
    }
    if architecture == "qwen2_vl":
        return Qwen2VLConfig(vision_config={**vision, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}, **shared)
    windows = {"window_size": 4 * PATCH, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    return Qwen2_5_VLConfig(vision_config={**vision, **windows, **sizes}, **shared)


CLASSES = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """architecture -> a folder in Hugging Face layout with random weights; made once a session."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            tokenizer = peer_tokenizer()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = CLASSES[architecture](_config(architecture, tokenizer))
                for name, parameter in model.named_parameters():
                    if parameter.ndim > 1 and "visual" not in name:
                        parameter.data *= 4  # enough for an input to show in the last hidden state
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            PatchSettings(PATCH, 2, 2, FACTOR**2, (16 * FACTOR) ** 2, HALF, HALF).save(folder)
            made[architecture] = folder
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def adapter(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """architecture -> a PEFT folder that fits its checkpoint; `bump` is added to one weight."""

    def make(architecture: str, bump: float = 0.0, **options: object) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = AutoModelForImageTextToText.from_pretrained(checkpoint(architecture))
            targets = r".*language_model.*\.(q_proj|v_proj|down_proj)"
            wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options))
            matrices = [p for name, p in wrapped.named_parameters() if "lora_B" in name]
            for matrix in matrices:
                torch.nn.init.normal_(matrix, std=0.1)
        matrices[0].data[0, 0] += bump
        wrapped.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def peer_items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Images of two sizes as pixels, file and stored bytes; a video as pixels and as frames; text, short and long."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return rng.integers(0, 255, (*shape, 3), dtype=np.uint8)

    Image.fromarray(pixels(24, 40)).save(folder / "image.png")
    buffer = io.BytesIO()
    Image.fromarray(pixels(16, 16)).save(buffer, format="PNG")
    frames = tuple(folder / f"{i}.png" for i in range(3))
    for frame in frames:
        Image.fromarray(pixels(16, 24)).save(frame)
    return [
        Item("pixels", "Find", "this", (Media("image", pixels(16, 24)),)),
        Item("file", "Find", "something with a longer text than the others", (Media("image", folder / "image.png"),)),
        Item("stored", "Represent the page", "", (Media("image", Stored(buffer.getvalue())),)),
        Item("clip", "Watch", "it", (Media("video", pixels(4, 16, 24)),)),
        Item("frames", "Watch", "", (Media("video", frames),)),
        Item("short", "", "no"),
        Item("long", "Just", "words " * 12),
    ]


@pytest.fixture
def backbone() -> DualLoRABackbone:
    """`tiny` with random adapters that change every embedding."""
    return random_backbone(0.1)


@pytest.fixture
def make_gate(backbone: DualLoRABackbone) -> Callable[..., RoutingGate]:
    """A random gate whose logits straddle 0 on the items."""

    def make(use_side: bool = False, seed: int = 0) -> RoutingGate:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gate = RoutingGate(2 * backbone.hidden_size, 8, use_side=use_side).eval()
            torch.nn.init.normal_(gate.outer.weight)
            if gate.side is not None:
                torch.nn.init.normal_(gate.side.weight)
        return gate

    return make


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A random model never writes `</answer>`: let every second CoT count as closed. Fills with rows of each call."""
    rows: list[int] = []

    def decode(*arguments: Any, **options: Any) -> Decoded:
        found = decode_cots(*arguments, **options)
        lengths = found.state.prompt_mask_BL.sum(-1)
        found.cots.closed_B = lengths % 2 == 0
        found.state.cots.closed_B = found.cots.closed_B
        rows.append(len(lengths))
        return found

    monkeypatch.setattr(encoding, "decode_cots", decode)
    return rows
