"""Any encoder with its embeddings cut to a prefix, for encoders that were trained for that (Matryoshka)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder
from twn_lightning.types import EmbeddingMode, Item, Side


class TruncatedEncoder:
    """The first components of another encoder's embeddings, normalised again.

    Args:
        encoder: gives the whole embeddings.
        dimension: components to keep.
        trained: the widths that the encoder was trained for, besides its own.

    Raises:
        ConfigError: a width that it was not trained for.

    Reference:
        Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022.
    """

    def __init__(self, encoder: Encoder, dimension: int, trained: Sequence[int]) -> None:
        if dimension not in (*trained, encoder.dimension):
            known = ", ".join(map(str, sorted({*trained, encoder.dimension})))
            raise ConfigError(
                f"embeddings cannot be cut to {dimension} dimensions: this encoder was trained for {known}. Train with "
                "stage.matryoshka_dims for others"
            )
        self.encoder, self.dimension = encoder, dimension

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def modes(self) -> tuple[EmbeddingMode, ...]:
        return self.encoder.modes

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        """See `Encoder.identity`."""
        return {**self.encoder.identity(side, mode), "truncated_to": self.dimension}

    def encode(
        self,
        items: Sequence[Item],
        side: Side,
        mode: EmbeddingMode,
        progress: Callable[[int], None] | None = None,
    ) -> EncodedItems:
        """See `Encoder.encode`."""
        encoded = self.encoder.encode(items, side, mode, progress)
        plain_ND = encoded.discriminative_ND
        return replace(
            encoded,
            embedding_ND=self._cut(encoded.embedding_ND),
            discriminative_ND=None if plain_ND is None else self._cut(plain_ND),
        )

    def _cut(self, embedding_ND: np.ndarray) -> np.ndarray:
        kept = embedding_ND[:, : self.dimension]
        return kept / np.linalg.norm(kept, axis=1, keepdims=True).clip(min=1e-12)
