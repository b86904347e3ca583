"""Fp32 similarities of a task, a few queries at a time. Q queries, C candidates, D width, U distinct vectors.

Whether scores are equal is decided on fp32. A matrix product may give equal vectors scores that differ in the last
bit, depending on where they stand, so candidates with equal vectors share the score of the first of them: they tie
exactly. Candidates that are all equal within `CONSTANT_TOLERANCE` share one score too: what is left between them is
rounding, which may depend on the place in a batch, and says nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twn_lightning.errors import DataError, NumericalError
from twn_lightning.metrics.candidate_index import CandidateIndex, Query, Rows
from twn_lightning.metrics.query_labels import NdcgPairing

FloatMatrix = NDArray[np.float32]
CONSTANT_TOLERANCE = 1e-6
"""Largest difference of equal embeddings in a component, relative to the largest component where that is above 1."""
CHUNK_SIZE = 256
MOST_SCORES = 2**22
"""Scores compared at once; bounds the memory."""
_BLOCK = 4096
"""Candidate rows read at once."""


class Similarities:
    """Embeddings and labels of one task, checked, and their scores.

    Args:
        queries: (Q, D) array or tensor.
        candidates: (C, D) array or tensor.
        candidate_keys: C keys; rows with the same key are one candidate, the first of them.
        items: Q entries, as in `score_embeddings`.
        pairing: As in `ranking_metrics`.

    Raises:
        DataError: Shapes that do not fit, unknown keys; names query and key.
        NumericalError: NaN or Inf; names row and key.
    """

    def __init__(
        self, queries: Any, candidates: Any, candidate_keys: Sequence[Any], items: Sequence[Any], pairing: NdcgPairing
    ) -> None:
        self.queries_QD, self.candidates_CD = _matrix("queries", queries), _matrix("candidates", candidates)
        self.index = CandidateIndex(candidate_keys)
        self._check_shapes(len(items))
        _check_finite("query", self.queries_QD, None)
        _check_finite("candidate", self.candidates_CD, self.index.keys)
        self.queries = self.index.read(items, pairing)
        self.constant_queries = _constant(self.queries_QD)
        self.constant_candidates = _constant(self.candidates_CD)
        if self.constant_candidates:
            self._twin_C = np.zeros(len(self.candidates_CD), dtype=np.int64)
        else:
            self._twin_C = _first_equal_rows(self.candidates_CD)

    def chunks(self, chunk_size: int) -> Iterator[tuple[list[Query], Rows, FloatMatrix]]:
        """Some queries, in order, the candidate rows of each (padded), and their scores (-inf where padded)."""
        start = 0
        while start < len(self.queries):
            chunk = self._next_chunk(start, max(1, chunk_size))
            start += len(chunk)
            yield chunk, *self._scores(chunk)

    def _check_shapes(self, num_items: int) -> None:
        (num_queries, width), (num_candidates, candidate_width) = self.queries_QD.shape, self.candidates_CD.shape
        if width != candidate_width:
            raise DataError(
                f"queries are {width} wide and candidates {candidate_width}: they do not come from the same encoder"
            )
        if num_items != num_queries:
            raise DataError(f"there are {num_queries} query embeddings but {num_items} items")
        if len(self.index.keys) != num_candidates:
            raise DataError(f"there are {num_candidates} candidate embeddings but {len(self.index.keys)} keys")

    def _next_chunk(self, start: int, chunk_size: int) -> list[Query]:
        """As many queries as keep their scores of all candidates that any of them ranks within `MOST_SCORES`."""
        chunk: list[Query] = []
        columns, previous = 0, None
        for query in self.queries[start : start + chunk_size]:
            if query.candidate_rows is not previous:
                previous = query.candidate_rows
                columns = min(columns + len(previous), len(self.candidates_CD))
            if chunk and (len(chunk) + 1) * columns > MOST_SCORES:
                break
            chunk.append(query)
        return chunk

    def _scores(self, chunk: list[Query]) -> tuple[Rows, FloatMatrix]:
        first = chunk[0].candidate_rows
        queries_QD = self.queries_QD[chunk[0].index : chunk[-1].index + 1]
        if all(query.candidate_rows is first for query in chunk):
            return np.broadcast_to(first, (len(chunk), len(first))), self._products(queries_QD, first)
        lengths = np.array([len(query.candidate_rows) for query in chunk])
        padding_QC = np.arange(lengths.max()) >= lengths[:, None]
        rows_QC = np.zeros(padding_QC.shape, dtype=np.int64)
        rows_QC[~padding_QC] = np.concatenate([query.candidate_rows for query in chunk])
        union, place_QC = self._distinct(rows_QC)
        scores_QC = np.take_along_axis(self._products(queries_QD, union), place_QC, axis=1)
        scores_QC[padding_QC] = -np.inf
        return rows_QC, scores_QC

    def _products(self, queries_QD: FloatMatrix, rows: Rows) -> FloatMatrix:
        """fp32 scores of some candidates; equal vectors are multiplied once."""
        distinct, place = self._distinct(self._twin_C[rows])
        scores_QU = np.empty((len(queries_QD), len(distinct)), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            for start in range(0, len(distinct), _BLOCK):
                block = distinct[start : start + _BLOCK]
                consecutive = block[-1] - block[0] + 1 == len(block)
                vectors = self.candidates_CD[block[0] : block[-1] + 1] if consecutive else self.candidates_CD[block]
                scores_QU[:, start : start + _BLOCK] = queries_QD @ vectors.T
        bad_Q = ~np.isfinite(scores_QU).all(1)
        if bad_Q.any():
            raise NumericalError(
                f"scores overflow fp32: the embeddings are finite but as large as {np.abs(queries_QD[bad_Q]).max():.3g}"
                f" (queries) and {np.abs(self.candidates_CD).max():.3g} (candidates); normalise them"
            )
        in_order = len(distinct) == len(rows) and bool((place[1:] > place[:-1]).all())
        return scores_QU if in_order else scores_QU[:, place]

    def _distinct(self, rows: Rows) -> tuple[Rows, Rows]:
        """The rows that occur, ascending, and the place of each given one among them, in the shape given."""
        occurs_C = np.zeros(len(self.candidates_CD), dtype=bool)
        occurs_C[rows] = True
        return np.flatnonzero(occurs_C), (np.cumsum(occurs_C) - 1)[rows]


def _matrix(name: str, values: Any) -> FloatMatrix:
    """A non-empty fp32 matrix on the CPU, without a copy where it is one already."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float32).numpy()
    matrix: FloatMatrix = np.asarray(values, dtype=np.float32)
    if matrix.ndim != 2 or matrix.size == 0:
        raise DataError(f"{name} must be a non-empty matrix, one embedding a row, got shape {matrix.shape}")
    return matrix


def _check_finite(side: str, matrix: FloatMatrix, keys: Sequence[Any] | None) -> None:
    bad_rows = [
        start + row
        for start in range(0, len(matrix), _BLOCK)
        for row in np.flatnonzero(~np.isfinite(matrix[start : start + _BLOCK]).all(1)).tolist()
    ]
    if bad_rows:
        row = bad_rows[0]
        named = f"{side} {row}" + ("" if keys is None else f" ({keys[row]!r})")
        raise NumericalError(
            f"embeddings contain NaN or Inf in {len(bad_rows)} of {len(matrix)} {side} rows, first in {named}: the "
            "encoder is broken there, and a rank among them would mean nothing"
        )


def _constant(matrix: FloatMatrix) -> bool:
    """Whether there are several rows and all are equal."""
    tolerance = CONSTANT_TOLERANCE * max(1.0, float(np.abs(matrix[0]).max()))
    return len(matrix) > 1 and all(
        float(np.abs(matrix[start : start + _BLOCK] - matrix[0]).max()) <= tolerance
        for start in range(0, len(matrix), _BLOCK)
    )


def _first_equal_rows(matrix: FloatMatrix) -> NDArray[np.int64]:
    """For each row the first row with the same values."""
    first: dict[bytes, int] = {}
    twins = np.empty(len(matrix), dtype=np.int64)
    for row, vector in enumerate(matrix):
        digest = hashlib.blake2b((vector + np.float32(0)).tobytes(), digest_size=16).digest()  # -0.0 becomes 0.0
        twins[row] = first.setdefault(digest, row)
    return twins
