"""A tiny backbone whose adapters matter, and a batch of images of two sizes, a video and plain text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings, ModelSettings
from twn_lightning.types import CotBatch, Item, Media, PromptBatch

COTS = ("<think>ab</think><answer>x y</answer>", "<think>a longer one.</think><answer>z</answer>")


def _randomise(backbone: DualLoRABackbone) -> None:
    """Larger weights, and LoRA that is not zero: a random initialisation hides errors behind its near-linearity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.ndim == 2:
                parameter.mul_(4)
        backbone.queries.copy_(torch.randn(backbone.queries.shape, generator=generator))


@pytest.fixture
def build() -> Callable[..., DualLoRABackbone]:
    def make(interface: str = "kv_detached", checkpointing: bool = False, **adapters: object) -> DualLoRABackbone:
        options = {"reasoning": LoraSettings(4, 8), "embedding": LoraSettings(4, 8), "num_queries": 3, **adapters}
        backbone = load_backbone(
            ModelSettings(name="tiny"), AdapterSettings(**options), InterfaceSettings(interface, checkpointing)
        )
        _randomise(backbone)
        return backbone.eval()

    return make


@pytest.fixture(scope="session")
def items() -> list[Item]:
    rng = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return rng.integers(0, 255, (*shape, 3), dtype=np.uint8)

    return [
        Item("small", "Find", "this", (Media("image", pixels(16, 16)),)),
        Item("large", "Find", "something longer", (Media("image", pixels(24, 40)),)),
        Item("clip", "Watch", "it", (Media("video", pixels(4, 16, 24)),)),
        Item("two", "Compare", "both", (Media("image", pixels(16, 24)), Media("image", pixels(16, 16)))),
        Item("text", "Just", "words"),
    ]


@pytest.fixture
def batch(build: Callable[..., DualLoRABackbone], items: list[Item]) -> tuple[PromptBatch, CotBatch]:
    processor = build().processor
    return processor(items), processor.encode_cots([COTS[i % 2] for i in range(len(items))])
