"""Documents into an index and queries against it: what ties an encoder to a `SearchIndex`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.embed import EmbedSettings, embed_inputs
from twn_lightning.evaluation.embedding_files import StoredEmbeddings, read_embeddings
from twn_lightning.evaluation.encoders.protocol import Encoder
from twn_lightning.evaluation.index import Document, Hit, SearchIndex
from twn_lightning.evaluation.inputs import Inputs
from twn_lightning.types import EmbeddingMode, Item, Side


@dataclass(frozen=True)
class Answer:
    """What one query found, and how it was embedded."""

    query: str
    hits: list[Hit]
    think: bool
    probability: float | None
    cot: str | None


def encoder_record(
    encoder: Encoder, side: Side, mode: EmbeddingMode, loaded_with: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What an index keeps of the encoder of its documents.

    Args:
        encoder: the encoder.
        side: which side the documents are; `candidate` as a rule.
        mode: how they are embedded.
        loaded_with: how to load the encoder again.
    """
    return {
        "name": encoder.name,
        "side": side.value,
        "mode": mode.value,
        "identity": encoder.identity(side, mode),
        "loaded_with": dict(loaded_with or {}),
    }


def stored_record(stored: StoredEmbeddings) -> dict[str, Any]:
    """The same, of embeddings that were read back."""
    record = stored.record
    return {
        "name": record["encoder"]["name"],
        "side": record["side"],
        "mode": record["mode"],
        "identity": record["encoder"]["identity"],
        "loaded_with": record["loaded_with"],
    }


def add_stored(index: SearchIndex, stored: StoredEmbeddings, replace: bool = False) -> int:
    """Add embeddings that were read back; returns how many documents were replaced.

    Raises:
        ConfigError: they are of another encoder.
        DataError: as `SearchIndex.add`.
    """
    index.require_encoder(stored_record(stored), "the embeddings")
    documents = [Document(row["key"], row["path"], row["text"] or "", row["hash"] or "") for row in stored.rows]
    return index.add(stored.embedding_ND, documents, replace)


def embed_documents(
    encoder: Encoder,
    inputs: Inputs,
    folder: Path,
    settings: EmbedSettings,
    *,
    loaded_with: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[StoredEmbeddings, Path]:
    """Embed documents into a work folder of an index, or go on where an interrupted run of the same stopped.

    Args:
        encoder: of the index.
        inputs: the documents.
        folder: the index.
        settings: as in `embed_inputs`.
        loaded_with: how to load the encoder again, for the record.
        progress: as in `embed_inputs`.

    Returns:
        The embeddings, and the work folder, to be deleted once they are in a saved index.
    """
    identity = encoder.identity(settings.side, settings.mode)
    content = json.dumps([encoder.name, identity, repr(settings), inputs.digest()], sort_keys=True)
    work = folder / f"incoming-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    embed_inputs(encoder, inputs, work, settings, loaded_with=loaded_with, progress=progress)
    return read_embeddings(work), work


def discard_work(folder: Path) -> None:
    """Delete what interrupted runs have left in an index, and the work folder of the one just done."""
    for work in folder.glob("incoming-*"):
        shutil.rmtree(work, ignore_errors=True)


def search_items(
    index: SearchIndex, encoder: Encoder, items: Sequence[Item], mode: EmbeddingMode, k: int = 10
) -> list[Answer]:
    """Embed queries and find the best documents of each.

    Args:
        index: to search in.
        encoder: must be the one of the documents: side, mode, threshold and gate may differ, weights may not.
        items: the queries.
        mode: how to embed them.
        k: documents per query.

    Raises:
        ConfigError: another encoder, or a mode that it does not have.
        DataError: an empty index, or a query whose image cannot be read.
    """
    if mode not in encoder.modes:
        has = ", ".join(known.value for known in encoder.modes)
        raise ConfigError(f"encoder '{encoder.name}' has no mode '{mode.value}'; it has: {has}")
    side, document_mode = Side(index.encoder["side"]), EmbeddingMode(index.encoder["mode"])
    index.require_encoder(encoder_record(encoder, side, document_mode), "the query encoder")
    encoded = encoder.encode(items, Side.QUERY, mode)
    found = index.search(encoded.embedding_ND, k)
    return [
        Answer(
            query=item.key,
            hits=hits,
            think=encoded.think_N is not None and bool(encoded.think_N[row]),
            probability=None if encoded.probability_N is None else float(encoded.probability_N[row]),
            cot=encoded.cots[row] if encoded.cots else None,
        )
        for row, (item, hits) in enumerate(zip(items, found, strict=True))
    ]
