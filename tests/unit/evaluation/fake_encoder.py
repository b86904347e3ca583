"""An encoder whose embeddings follow from the items' content alone, and which reads media as real ones do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.types import EmbeddingMode, Item, Side

DIMENSION = 8


class FakeEncoder:
    """Thinks about texts that contain `hard`; `fail_after` batches it is interrupted, as by Ctrl-C."""

    def __init__(
        self, version: str = "one", fail_after: int | None = None, change: Callable[[np.ndarray], None] | None = None
    ) -> None:
        self.version, self.fail_after, self.change = version, fail_after, change
        self.encoded: list[str] = []
        self.calls = 0

    name = "fake"
    dimension = DIMENSION
    modes = (EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.ADAPTIVE)

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        return {"version": self.version, "mode": mode.value, "frames": 8}

    def encode(
        self,
        items: Sequence[Item],
        side: Side,
        mode: EmbeddingMode,
        progress: Callable[[int], None] | None = None,
    ) -> EncodedItems:
        contents = [self._content(item) for item in items]
        if self.calls == self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.encoded += [item.key for item in items]
        embedding_ND = np.stack([vector(content) for content in contents])
        if self.change is not None:
            self.change(embedding_ND)
        if mode is EmbeddingMode.DISCRIMINATIVE:
            return EncodedItems(embedding_ND)
        think = np.array(["hard" in item.text for item in items])
        return EncodedItems(
            embedding_ND,
            think_N=think,
            probability_N=np.where(think, 0.75, 0.25).astype(np.float32),
            tokens_N=np.where(think, 5, 0),
            malformed_N=np.zeros(len(items), dtype=bool),
            cots=["<think> so </think><answer> x </answer>" if t else None for t in think],
        )

    def _content(self, item: Item) -> bytes:
        pixels = [
            (load_image(m, item.key) if m.kind == "image" else load_video(m, item.key, 8).frames).tobytes()
            for m in item.media
        ]
        return b"".join([self.version.encode(), item.text.encode(), *pixels])


def vector(content: bytes) -> np.ndarray:
    """A unit vector that depends on every byte."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    values = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return values / np.linalg.norm(values)
