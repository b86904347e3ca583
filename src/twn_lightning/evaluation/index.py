"""A searchable collection of embeddings: a FAISS index, its documents, and the encoder that made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from twn_lightning.errors import CheckpointError, ConfigError, DataError, NumericalError, unknown_name
from twn_lightning.evaluation.index_files import commit, faiss, read_generation, read_state, write_generation

IndexKind = Literal["flat", "hnsw"]
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 128
"""Links per vector, and candidates kept while building and while searching: recall against time."""


@dataclass(frozen=True)
class Document:
    """What a search result shows."""

    key: str
    path: str | None = None
    text: str = ""
    hash: str = ""


@dataclass(frozen=True)
class Hit:
    """One result."""

    score: float
    """Cosine similarity."""
    document: Document


@dataclass
class SearchIndex:
    """Embeddings by document, for search by inner product. `create` or `load` one.

    `flat` compares with every document and is exact; `hnsw` follows a graph, finds nearly all of the same results,
    and pays from about a hundred thousand documents on.
    """

    dimension: int
    encoder: dict[str, Any]
    """Name, side, mode and identity of the encoder of the documents, and how to load it again."""
    kind: IndexKind
    documents: dict[int, Document] = field(default_factory=dict)
    generation: int = 0
    _vectors: Any = None

    @classmethod
    def create(cls, dimension: int, encoder: dict[str, Any], kind: IndexKind = "flat") -> SearchIndex:
        """An empty index.

        Args:
            dimension: width of the embeddings.
            encoder: what `require_encoder` compares with: plain values.
            kind: `flat` or `hnsw`.

        Raises:
            ConfigError: unknown kind, or FAISS is not installed.
        """
        if kind not in get_args(IndexKind):
            raise ConfigError(unknown_name("kind of index", kind, get_args(IndexKind)))
        index = cls(dimension, json.loads(json.dumps(encoder)), kind)
        index._vectors = _empty(dimension, kind)
        return index

    @classmethod
    def load(cls, folder: Path) -> SearchIndex:
        """Read the current generation.

        Raises:
            CheckpointError: no index there, or one that is incomplete or of another version.
            ConfigError: FAISS is not installed.
        """
        state = read_state(folder)
        if state["kind"] not in get_args(IndexKind):
            raise CheckpointError(f"{folder}: {unknown_name('kind of index', state['kind'], get_args(IndexKind))}")
        vectors, rows = read_generation(folder, state)
        documents = {row.pop("id"): Document(**row) for row in rows}
        return cls(state["dimension"], state["encoder"], state["kind"], documents, state["generation"], vectors)

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write all of it as a new generation, then make that the current one and drop the earlier.

        Args:
            folder: where the index is.
            overwrite: take the place of whatever index is there.

        Raises:
            CheckpointError: another process has saved since this index was loaded.
        """
        current = read_state(folder)["generation"] if (folder / "index.json").exists() else 0
        if current != self.generation and not overwrite:
            raise CheckpointError(
                f"{folder} is at generation {current}, this index was loaded at {self.generation}: another process has "
                "changed it; load it and add again"
            )
        rows = [{"id": id_, **asdict(document)} for id_, document in self.documents.items()]
        files = write_generation(folder, current + 1, self._vectors, rows)
        state = {
            "generation": current + 1,
            "kind": self.kind,
            "dimension": self.dimension,
            "documents": len(self),
            "encoder": self.encoder,
            **files,
        }
        commit(folder, state)
        self.generation = current + 1

    def __len__(self) -> int:
        return len(self.documents)

    def require_encoder(self, encoder: dict[str, Any], what: str) -> None:
        """Refuse embeddings of another encoder: their similarities to the documents here would mean nothing.

        Raises:
            ConfigError: the identities differ; names where.
        """
        now = json.loads(json.dumps(encoder))
        differing = [
            f"{name}: index {self.encoder.get(name)}, {what} {now.get(name)}"
            for name in ("name", "side", "mode")
            if self.encoder.get(name) != now.get(name)
        ]
        there, here = self.encoder.get("identity") or {}, now.get("identity") or {}
        differing += [
            f"{name}: index {there.get(name)}, {what} {here.get(name)}"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]
        if differing:
            raise ConfigError(
                f"{what} is of another encoder than this index: " + "; ".join(differing[:4]) + ". Use the encoder that "
                "the index was built with, or build another index"
            )

    def add(self, embeddings_ND: np.ndarray, documents: Sequence[Document], replace: bool = False) -> int:
        """Add documents; nothing is added where an error is raised.

        Args:
            embeddings_ND: unit-norm float32, one row a document.
            documents: with unique keys.
            replace: a document whose key is in the index takes the other's place.

        Returns:
            How many documents were replaced.

        Raises:
            DataError: no documents, another width, vectors that are not unit norm, or keys that exist already.
            NumericalError: a vector that is not finite.
        """
        vectors_ND = _checked(embeddings_ND, [d.key for d in documents], self.dimension)
        ids = {document.key: id_ for id_, document in self.documents.items()}
        known = [d.key for d in documents if d.key in ids]
        if known and not replace:
            raise DataError(
                f"{len(known)} of {len(documents)} keys are in the index already, {known[0]!r} for one; pass --replace "
                "to put the new documents in their place"
            )
        start = max(self.documents, default=-1) + 1
        if known:
            self._remove([ids[key] for key in known])
        new_ids = np.arange(start, start + len(documents), dtype=np.int64)
        self._vectors.add_with_ids(vectors_ND, new_ids)
        self.documents.update(zip(new_ids.tolist(), documents, strict=True))
        return len(known)

    def _remove(self, ids: list[int]) -> None:
        for id_ in ids:
            del self.documents[id_]
        if self.kind == "flat":
            self._vectors.remove_ids(np.array(ids, dtype=np.int64))
            return
        # A graph cannot lose vectors: it is built anew from those that stay.
        kept = np.array(list(self.documents), dtype=np.int64)
        vectors_ND = np.array([self._vectors.reconstruct(int(id_)) for id_ in kept], np.float32)
        self._vectors = _empty(self.dimension, self.kind)
        if len(kept):
            self._vectors.add_with_ids(vectors_ND, kept)

    def search(self, queries_QD: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The best documents of each query, best first; equal scores in the order in which they were added.

        Raises:
            ConfigError: k below 1.
            DataError: an empty index, or queries of another width.
            NumericalError: a query that is not finite.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, it is {k}")
        if not len(self):
            raise DataError("the index has no documents; add some with `twn search add`")
        queries_QD = _checked(queries_QD, [f"query {i}" for i in range(len(queries_QD))], self.dimension)
        scores_QK, ids_QK = self._vectors.search(queries_QD, min(k, len(self)))
        found = []
        for scores, ids in zip(scores_QK.tolist(), ids_QK.tolist(), strict=True):
            ranked = sorted((-score, id_) for score, id_ in zip(scores, ids, strict=True) if id_ >= 0)
            found.append([Hit(-score, self.documents[id_]) for score, id_ in ranked])
        return found


def _empty(dimension: int, kind: IndexKind) -> Any:
    module = faiss()
    if kind == "flat":
        vectors = module.IndexFlatIP(dimension)
    else:
        vectors = module.IndexHNSWFlat(dimension, HNSW_LINKS, module.METRIC_INNER_PRODUCT)
        vectors.hnsw.efConstruction, vectors.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    return module.IndexIDMap2(vectors)


def _checked(embeddings_ND: np.ndarray, keys: Sequence[str], dimension: int) -> np.ndarray:
    """Embeddings as contiguous float32."""
    if not keys:
        raise DataError("no embeddings were given")
    if embeddings_ND.shape != (len(keys), dimension):
        raise DataError(
            f"embeddings of shape {embeddings_ND.shape} do not fit: expected {len(keys)} rows of width {dimension}"
        )
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if list(keys).count(key) > 1)
        raise DataError(f"key {twice!r} is there twice; keys must be unique")
    vectors_ND = np.ascontiguousarray(embeddings_ND, np.float32)
    if not np.isfinite(vectors_ND).all():
        first = int((~np.isfinite(vectors_ND).all(axis=1)).argmax())
        raise NumericalError(f"the embedding of '{keys[first]}' is not finite; embed it again")
    norms = np.linalg.norm(vectors_ND, axis=1)
    if np.abs(norms - 1).max() > 1e-3:
        first = int(np.abs(norms - 1).argmax())
        raise DataError(f"the embedding of '{keys[first]}' has norm {norms[first]:.4f}; cosine search needs norm 1")
    return vectors_ND
