"""One file of cached embeddings: written once, atomically, under a name no other process takes; checked when read.

A shard is a safetensors file with one row an item: its digest, its embedding, and how the embedding came about.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twn_lightning.atomic import whole_file
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.item_digest import DIGEST_BYTES, DIGEST_TYPE

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
_COLUMNS = {
    "embedding_ND": np.float32,
    "think_N": np.bool_,
    "probability_N": np.float32,
    "tokens_N": np.int64,
    "malformed_N": np.bool_,
}
"""What is kept besides CoTs. `discriminative_ND` is an entry of its own, in the space of the discriminative mode."""

_NO_COT = -1
_CHECKSUM = "checksum"
"""Its name in a file's metadata."""


def select_rows(encoded: EncodedItems, rows: Sequence[int] | np.ndarray) -> EncodedItems:
    """Some rows, in the order given."""
    index = np.asarray(rows, dtype=np.int64)
    values: dict[str, Any] = {}
    for field in fields(EncodedItems):
        value = getattr(encoded, field.name)
        if field.name == "cots":
            values["cots"] = [value[i] for i in index] if value else []
        else:
            values[field.name] = None if value is None else value[index]
    return EncodedItems(**values)


def merge_rows(parts: Sequence[tuple[np.ndarray, EncodedItems]]) -> EncodedItems:
    """Parts of a whole as one, in the order of their rows.

    Args:
        parts: which rows each of them holds, and those; at least one.
    """
    rows_N = np.concatenate([rows for rows, _ in parts])
    return select_rows(EncodedItems.join([encoded for _, encoded in parts]), np.argsort(rows_N, kind="stable"))


def write_shard(folder: Path, digests_N: np.ndarray, encoded: EncodedItems) -> Path:
    """Write a shard whose name sorts after all earlier ones.

    Args:
        folder: created if need be.
        digests_N: of the items, `DIGEST_TYPE`.
        encoded: their embeddings; unit norm, finite.
    """
    tensors = {"digest": np.frombuffer(digests_N.tobytes(), np.uint8).reshape(-1, DIGEST_BYTES)}
    for name, dtype in _COLUMNS.items():
        value = getattr(encoded, name)
        if value is not None:
            tensors[name] = np.ascontiguousarray(value, dtype=dtype)
    if encoded.cots:
        texts = [None if text is None else text.encode() for text in encoded.cots]
        tensors["cot_length_N"] = np.array([_NO_COT if t is None else len(t) for t in texts], dtype=np.int64)
        tensors["cot_bytes"] = np.frombuffer(b"".join(t or b"" for t in texts) or b"\0", dtype=np.uint8)
    content = save(tensors, {_CHECKSUM: _checksum(tensors)})
    name = f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    path = folder / f"{name}{SUFFIX}"
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_digests(path: Path) -> np.ndarray:
    """The digests of a shard's rows; none, with a warning, where the file is torn."""
    try:
        with safe_open(path, framework="numpy") as shard:
            if _CHECKSUM not in (shard.metadata() or {}):
                log.info("embedding cache: %s is of an earlier release; its items are encoded again", path)
                return np.empty(0, dtype=DIGEST_TYPE)
            return _as_digests(shard.get_tensor("digest"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        log.warning("embedding cache: %s is torn and ignored (%s); its items are encoded again", path, error)
        return np.empty(0, dtype=DIGEST_TYPE)


def read_shard(path: Path) -> EncodedItems | None:
    """The whole content of a shard; None, with a warning, where it is torn or not what was written."""
    try:
        with safe_open(path, framework="numpy") as shard:
            expected = (shard.metadata() or {}).get(_CHECKSUM)
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        log.warning("embedding cache: %s is torn and ignored (%s); its items are encoded again", path, error)
        return None
    if expected != _checksum(tensors):
        log.warning("embedding cache: %s is damaged (checksum) and ignored; its items are encoded again", path)
        return None
    columns: dict[str, Any] = {name: tensors.get(name) for name in _COLUMNS}
    return EncodedItems(**columns, cots=_texts(tensors))


def without_extras(encoded: EncodedItems) -> EncodedItems:
    """What a shard keeps of it, so that fresh and cached rows can be joined."""
    return replace(encoded, discriminative_ND=None)


def _as_digests(bytes_NB: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bytes_NB).view(DIGEST_TYPE)[:, 0]


def _texts(tensors: dict[str, np.ndarray]) -> list[str | None]:
    if "cot_length_N" not in tensors:
        return []
    joined, start = tensors["cot_bytes"].tobytes(), 0
    texts: list[str | None] = []
    for length in tensors["cot_length_N"].tolist():
        texts.append(None if length == _NO_COT else joined[start : start + length].decode())
        start += max(length, 0)
    return texts


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """CRC-32 over names, types, shapes and contents of the arrays, in the order of their names."""
    checksum = 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.tobytes(), checksum)
    return f"{checksum:08x}"
