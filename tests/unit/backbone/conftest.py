from __future__ import annotations

import numpy as np
import pytest
import torch

from twn_lightning.backbone.loading import load_backbone
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings, ModelSettings
from twn_lightning.types import Item, Media


@pytest.fixture
def tiny_backbone():
    """A tiny backbone with LoRA of rank 4 that is not zero; keyword arguments go to AdapterSettings."""

    def make(seed: int = 1, **adapters: object):
        options = {"reasoning": LoraSettings(4, 8), "embedding": LoraSettings(4, 8), "num_queries": 3, **adapters}
        backbone = load_backbone(ModelSettings(name="tiny"), AdapterSettings(**options), InterfaceSettings())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for group in ("reasoning", "embedding", "queries"):
                for parameter in backbone.group_parameters(group):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return backbone.eval()

    return make


@pytest.fixture(scope="session")
def mixed_items() -> list[Item]:
    """Images of two sizes, a video, two images at once, and plain text."""
    rng = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return rng.integers(0, 255, (*shape, 3), dtype=np.uint8)

    return [
        Item("small", "Find", "this", (Media("image", pixels(16, 16)),)),
        Item("large", "Find", "something longer", (Media("image", pixels(24, 40)),)),
        Item("clip", "Watch", "it", (Media("video", pixels(4, 16, 24)), Media("image", pixels(16, 16)))),
        Item("two", "Compare", "both", (Media("image", pixels(16, 24)), Media("image", pixels(16, 16)))),
        Item("text", "Just", "words"),
    ]
