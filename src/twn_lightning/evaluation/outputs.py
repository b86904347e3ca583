"""What encoding gave: embeddings and decisions as arrays, and the files they go to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.embed import EmbedSettings, write_encoded
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder
from twn_lightning.evaluation.index import Document, IndexKind, SearchIndex
from twn_lightning.evaluation.inputs import Inputs
from twn_lightning.evaluation.item_digest import item_digest
from twn_lightning.evaluation.search import encoder_record

ArrayKind = Literal["numpy", "torch"]


@dataclass(frozen=True)
class EncoderOutput:
    """Embeddings of N inputs in their order, and how they came about."""

    embeddings: np.ndarray | Tensor
    """(N, D) float32, unit norm."""
    think: np.ndarray | Tensor
    """(N,) bool: which inputs thought."""
    probability: np.ndarray | Tensor | None
    """(N,) float32: the gate's probability of thinking; None outside the adaptive mode."""
    cot: list[str | None]
    """The chain of thought of each input that thought."""
    tokens: np.ndarray | Tensor
    """(N,) int64: tokens of each CoT, 0 without one."""
    malformed: np.ndarray | Tensor
    """(N,) bool: the CoT had not closed by its cap, so the embedding is the discriminative one."""
    _source: _Source

    @classmethod
    def of(
        cls,
        encoded: EncodedItems,
        inputs: Inputs,
        encoder: Encoder,
        settings: EmbedSettings,
        loaded_with: Mapping[str, Any],
        convert_to: ArrayKind = "numpy",
    ) -> EncoderOutput:
        """The output of an encoder.

        Args:
            encoded: what it gave.
            inputs: what it read.
            encoder: itself, for the identity that files carry.
            settings: the side and the mode asked for.
            loaded_with: how to load the encoder again.
            convert_to: the kind of arrays.
        """
        count = len(encoded)

        def column(values: np.ndarray | None, kind: type) -> np.ndarray | Tensor:
            array = np.zeros(count, kind) if values is None else values
            return array if convert_to == "numpy" else torch.from_numpy(array)

        probability = encoded.probability_N
        return cls(
            embeddings=column(encoded.embedding_ND, np.float32),
            think=column(encoded.think_N, np.bool_),
            probability=None if probability is None else column(probability, np.float32),
            cot=encoded.cots or [None] * count,
            tokens=column(encoded.tokens_N, np.int64),
            malformed=column(encoded.malformed_N, np.bool_),
            _source=_Source(encoded, inputs, encoder, settings, loaded_with),
        )

    def __len__(self) -> int:
        return len(self.cot)

    def to_parquet(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write embeddings, decisions and CoTs as `twn embed` does; `twn search build` and `read_embeddings` read it.

        Args:
            folder: gets embeddings.parquet and embed.json.
            overwrite: replace what is there.

        Returns:
            The parquet file.

        Raises:
            ConfigError: the folder holds embeddings already.
        """
        source, folder = self._source, Path(folder).expanduser()
        write_encoded(
            source.encoder,
            source.inputs,
            source.encoded,
            folder,
            source.settings,
            loaded_with=source.loaded_with,
            overwrite=overwrite,
        )
        return folder / "embeddings.parquet"

    def to_faiss(self, folder: str | Path, *, kind: IndexKind = "flat", overwrite: bool = False) -> SearchIndex:
        """Write a search index, which `twn search query` and FAISS read.

        Args:
            folder: gets the index and the keys of its documents.
            kind: `flat` is exact, `hnsw` approximate.
            overwrite: replace the index that is there.

        Returns:
            The index.

        Raises:
            ConfigError: an index is there already, an unknown kind, or FAISS is not installed.
        """
        source, folder = self._source, Path(folder).expanduser()
        if (folder / "index.json").exists() and not overwrite:
            raise ConfigError(f"{folder} holds an index: name another folder, or pass overwrite=True")
        side, mode = source.settings.side, source.settings.mode
        record = encoder_record(source.encoder, side, mode, source.loaded_with)
        index = SearchIndex.create(source.encoder.dimension, record, kind)
        documents = [
            Document(item.key, path, item.text, item_digest(item).hex())
            for item, path in zip(source.inputs.items, source.inputs.paths, strict=True)
        ]
        index.add(source.encoded.embedding_ND, documents)
        index.save(folder, overwrite=overwrite)
        return index


@dataclass(frozen=True)
class _Source:
    """What the files need besides the arrays."""

    encoded: EncodedItems
    inputs: Inputs
    encoder: Encoder
    settings: EmbedSettings
    loaded_with: Mapping[str, Any]
