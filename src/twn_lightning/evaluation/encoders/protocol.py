"""What a model must offer to be evaluated on MMEB-V2, cached and searched with: one method and an identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np

from twn_lightning.types import EmbeddingMode, Item, Side


@dataclass
class EncodedItems:
    """Embeddings of N items in one mode and how they came about; arrays on the CPU."""

    embedding_ND: np.ndarray
    """float32, unit norm, in the mode asked for (a CoT that never closed: the discriminative one)."""
    discriminative_ND: np.ndarray | None = None
    """Where the encoder had it at hand anyway (generative and adaptive modes)."""
    think_N: np.ndarray | None = None
    """bool: which items thought; None: none did."""
    probability_N: np.ndarray | None = None
    """float32: the gate's probability of thinking, where there is a gate."""
    tokens_N: np.ndarray | None = None
    """int64: CoT tokens generated; None: none."""
    malformed_N: np.ndarray | None = None
    """bool: the CoT had not closed by the cap, or the embedding token was never written."""
    cots: list[str | None] = field(default_factory=list)
    """The CoTs, or empty where nothing thinks."""

    def __len__(self) -> int:
        return len(self.embedding_ND)

    @classmethod
    def join(cls, parts: Sequence[EncodedItems]) -> EncodedItems:
        """Batches one after another; a field that is missing in one is missing in all."""
        values: dict[str, Any] = {}
        for part_field in fields(cls):
            pieces = [getattr(part, part_field.name) for part in parts]
            if part_field.name == "cots":
                values["cots"] = [text for piece in pieces for text in piece]
            else:
                values[part_field.name] = None if any(p is None for p in pieces) else np.concatenate(pieces)
        return cls(**values)


@runtime_checkable
class Encoder(Protocol):
    """A model that embeds items."""

    @property
    def name(self) -> str:
        """For score files and tables."""

    @property
    def dimension(self) -> int:
        """Width of its embeddings."""

    @property
    def modes(self) -> tuple[EmbeddingMode, ...]:
        """The modes it has; a plain embedder has `discriminative` only."""

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        """Everything besides the item that decides an embedding, as plain values.

        Backbone and revision, adapter digest, processor settings, prompt version, frame and pixel budget, dtype,
        decoding settings, and in adaptive mode the gate and its threshold.
        """

    def encode(
        self,
        items: Sequence[Item],
        side: Side,
        mode: EmbeddingMode,
        progress: Callable[[int], None] | None = None,
    ) -> EncodedItems:
        """Embed items, in order.

        Args:
            items: queries or candidates, as their task's loader made them.
            side: which of the two.
            mode: one of `modes`.
            progress: called with the number of items done, after each batch.

        Raises:
            ConfigError: a mode it does not have.
            DataError: an item whose media cannot be read; names the item.
            NumericalError: an embedding that is not finite; names the item.
        """


@runtime_checkable
class GatedEncoder(Encoder, Protocol):
    """An encoder whose adaptive mode thinks where a gate's probability is above a threshold.

    Its adaptive embeddings are the discriminative or the generative ones of the same prompt, and `encode` in adaptive
    mode gives every field, so that a cache can keep decisions and CoTs apart.
    """

    @property
    def threshold(self) -> float:
        """Think iff probability > threshold."""

    def decision_identity(self, side: Side) -> dict[str, Any]:
        """What decides the discriminative embedding and the gate's probability: neither threshold nor decoding."""

    def decide(self, items: Sequence[Item], side: Side, progress: Callable[[int], None] | None = None) -> EncodedItems:
        """Discriminative embeddings and the gate's probabilities; nothing is decoded. Arguments as `encode`."""


@runtime_checkable
class NamedModel(Protocol):
    """An encoder that can tell one trained model from another in score files."""

    def model_name(self) -> str:
        """What is evaluated, such as backbone and adapters."""
