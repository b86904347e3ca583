"""An encoder without a model: its vectors follow from what an item holds, so runs can be compared exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.types import EmbeddingMode, Item, Side

ALL_MODES = tuple(EmbeddingMode)


@dataclass
class FakeEncoder:
    """Embeds the words of an item's text as a sum of word vectors; queries and candidates that share words are close.

    It thinks like a `GatedEncoder`: the gate's probability is .75 for texts of even length and .25 for others, or, of a
    gate with a name, any. `batches` records the keys of every call and `calls` what was asked for. `fail_after` calls,
    the next one raises `failure`; items whose text holds "broken" cannot be read.
    """

    adapters: str = "a"
    gate: str = ""
    threshold: float = 0.5
    modes: tuple[EmbeddingMode, ...] = ALL_MODES
    dimension: int = 16
    fail_after: int | None = None
    failure: BaseException = field(default_factory=KeyboardInterrupt)
    constant: bool = False
    batches: list[list[str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "fake"

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        gated = {"gate": self.gate, "threshold": self.threshold} if mode is EmbeddingMode.ADAPTIVE else {}
        return {"model": self.name, "adapters": self.adapters, "mode": mode.value} | gated

    def decision_identity(self, side: Side) -> dict[str, Any]:
        return {"model": self.name, "adapters": self.adapters, "mode": "decision", "gate": self.gate}

    def encode(
        self, items: Sequence[Item], side: Side, mode: EmbeddingMode, progress: Callable[[int], None] | None = None
    ) -> EncodedItems:
        self._read(items, mode.value)
        if mode is EmbeddingMode.DISCRIMINATIVE:
            return EncodedItems(self._vectors(items, mode))
        probability = self._probability(items)
        think = probability > self.threshold if mode is EmbeddingMode.ADAPTIVE else np.ones(len(items), dtype=bool)
        plain, thought = (self._vectors(items, m) for m in (EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE))
        return EncodedItems(
            np.where(think[:, None], thought, plain),
            plain,
            think_N=think,
            probability_N=probability if mode is EmbeddingMode.ADAPTIVE else None,
            tokens_N=think * np.array([len(item.text) for item in items]),
            malformed_N=think & np.array(["odd" in item.text for item in items]),
            cots=[_cot(item) if thinks else None for item, thinks in zip(items, think, strict=True)],
        )

    def decide(self, items: Sequence[Item], side: Side, progress: Callable[[int], None] | None = None) -> EncodedItems:
        self._read(items, "decide")
        return EncodedItems(self._vectors(items, EmbeddingMode.DISCRIMINATIVE), probability_N=self._probability(items))

    @property
    def encoded(self) -> int:
        """Items encoded so far."""
        return sum(map(len, self.batches))

    def _read(self, items: Sequence[Item], asked: str) -> None:
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            raise self.failure
        for item in items:
            if "broken" in item.text:
                raise DataError(f"item '{item.key}': its image is truncated")
        self.batches.append([item.key for item in items])
        self.calls.append(asked)

    def _probability(self, items: Sequence[Item]) -> np.ndarray:
        if not self.gate:
            return np.array([0.75 if len(item.text) % 2 == 0 else 0.25 for item in items], dtype=np.float32)
        named = [abs(_word(f"{self.gate} {item.text}", 1)[0]) for item in items]
        return np.tanh(np.array(named, dtype=np.float32))

    def _vectors(self, items: Sequence[Item], mode: EmbeddingMode) -> np.ndarray:
        return np.stack([self._vector(item, mode) for item in items])

    def _vector(self, item: Item, mode: EmbeddingMode) -> np.ndarray:
        if self.constant:
            return np.full(self.dimension, self.dimension**-0.5, dtype=np.float32)
        words = [self.adapters, mode.value, *item.text.split() * 3]
        words += [str(media.content) for media in item.media if isinstance(media.content, Path)]
        vector = np.sum([_word(word, self.dimension) for word in words], axis=0)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def _cot(item: Item) -> str:
    return f"<think>{item.text} ü</think>"


def _word(word: str, dimension: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(dimension)
