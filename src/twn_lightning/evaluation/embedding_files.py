"""Embeddings on disk: parts while they are made, one parquet or npy file when done, and `embed.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twn_lightning.atomic import whole_file
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.item_digest import item_digest
from twn_lightning.json_object import read_json_object, write_json
from twn_lightning.manifest import file_digest
from twn_lightning.types import Item

SCHEMA_VERSION = 1
_SKIPPED = b"twn.skipped"
_FIELDS = {"status": str, "side": str, "mode": str, "encoder.dimension": int, "settings.format": str}


@dataclass(frozen=True)
class OutputPaths:
    """Where one shard of a run writes inside its folder."""

    folder: Path
    shard: int = 0
    shards: int = 1

    @property
    def suffix(self) -> str:
        return "" if self.shards == 1 else f"-{self.shard:05d}-of-{self.shards:05d}"

    @property
    def record(self) -> Path:
        return self.folder / f"embed{self.suffix}.json"

    @property
    def parts(self) -> Path:
        return self.folder / f"parts{self.suffix}"

    def part(self, chunk: int) -> Path:
        return self.parts / f"{chunk:06d}.parquet"

    @property
    def parquet(self) -> Path:
        return self.folder / f"embeddings{self.suffix}.parquet"

    @property
    def npy(self) -> Path:
        return self.folder / f"embeddings{self.suffix}.npy"

    @property
    def keys(self) -> Path:
        return self.folder / f"keys{self.suffix}.jsonl"

    @property
    def all_files(self) -> list[Path]:
        """Everything that is there of this shard."""
        files = [self.record, self.parquet, self.npy, self.keys, *sorted(self.parts.glob("*"))]
        return [path for path in files if path.exists()]


@dataclass
class StoredEmbeddings:
    """N embeddings read back, in the order of the inputs."""

    rows: list[dict[str, Any]]
    """The other columns: key, think, probability, cot_tokens, malformed, cot, path, text, hash."""
    embedding_ND: np.ndarray
    record: dict[str, Any]
    """Of the first shard: which encoder, in which mode."""


def schema(dimension: int) -> pa.Schema:
    """The columns of a file of embeddings."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dimension), nullable=False),
            ("think", pa.bool_()),
            ("probability", pa.float32()),
            ("cot_tokens", pa.int64()),
            ("malformed", pa.bool_()),
            ("cot", pa.string()),
            ("path", pa.string()),
            ("text", pa.string()),
            ("hash", pa.string()),
        ]
    )


def part_table(
    items: Sequence[Item],
    paths: Sequence[str | None],
    encoded: EncodedItems | None,
    dimension: int,
    skipped: Sequence[dict[str, str]],
) -> pa.Table:
    """One chunk as a table; what was skipped is in its metadata, so that both are written at once.

    Args:
        items: the rows that were encoded.
        paths: the file of each, where it has one.
        encoded: None where no row was.
        dimension: width of an embedding.
        skipped: key and reason of each row left out.
    """
    count = len(items)
    if encoded is None:
        encoded = EncodedItems(np.zeros((0, dimension), np.float32))
    flat = pa.array(np.ascontiguousarray(encoded.embedding_ND, np.float32).reshape(-1), pa.float32())
    columns = {
        "key": [item.key for item in items],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, dimension),
        "think": _listed(encoded.think_N, False, count),
        "probability": _listed(encoded.probability_N, None, count),
        "cot_tokens": _listed(encoded.tokens_N, 0, count),
        "malformed": _listed(encoded.malformed_N, False, count),
        "cot": encoded.cots or [None] * count,
        "path": list(paths),
        "text": [item.text for item in items],
        "hash": [item_digest(item).hex() for item in items],
    }
    metadata = {_SKIPPED: json.dumps(list(skipped)).encode()}
    return pa.table(columns, schema=schema(dimension).with_metadata(metadata))


def _listed(values: np.ndarray | None, default: Any, count: int) -> list[Any]:
    return [default] * count if values is None else values.tolist()


def skipped_of(part: Path) -> list[dict[str, str]]:
    """What a part left out."""
    found: list[dict[str, str]] = json.loads(pq.read_schema(part).metadata[_SKIPPED])
    return found


def write_part(table: pa.Table, path: Path) -> None:
    """Write one part so that it is there whole or not at all."""
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def merge_parquet(paths: OutputPaths, parts: Sequence[Path], dimension: int) -> None:
    """Parts to one parquet file, one part in memory at a time."""
    with whole_file(paths.parquet, scratch=paths.parts) as file, pq.ParquetWriter(file, schema(dimension)) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(None))


def merge_npy(paths: OutputPaths, parts: Sequence[Path], dimension: int) -> None:
    """Parts to one array (N, D) float32 and a file with the other columns, one JSON object a row."""
    total = sum(pq.read_metadata(part).num_rows for part in parts)
    with whole_file(paths.keys, scratch=paths.parts) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for part in parts:
            for row in pq.read_table(part).drop_columns("embedding").to_pylist():
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    with whole_file(paths.npy, scratch=paths.parts) as temporary, temporary.open("wb") as array:
        header = {"descr": "<f4", "fortran_order": False, "shape": (total, dimension)}
        np.lib.format.write_array_header_1_0(array, header)
        for part in parts:
            array.write(_embeddings(pq.read_table(part, columns=["embedding"]), dimension).tobytes())


def file_digests(paths: OutputPaths) -> dict[str, str]:
    """SHA-256 by name of the finished files, for `embed.json`."""
    return {path.name: file_digest(path) for path in (paths.parquet, paths.npy, paths.keys) if path.exists()}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write `embed.json`."""
    write_json(path, record)


def read_record(path: Path) -> dict[str, Any]:
    """Read `embed.json`.

    Raises:
        DataError: it is broken, or of another version.
    """
    return read_json_object(path, DataError, "embed again with --overwrite", _FIELDS, SCHEMA_VERSION)


def read_embeddings(folder: Path) -> StoredEmbeddings:
    """All embeddings of a folder that `twn embed` wrote, of one shard or of several.

    Raises:
        DataError: no embeddings there, a shard that is missing or not complete, or shards of different encoders.
    """
    shards = [(paths, read_record(paths.record)) for paths in _shards(folder)]
    first = shards[0][1]
    rows: list[dict[str, Any]] = []
    arrays: list[np.ndarray] = []
    for paths, record in shards:
        if record["status"] != "complete":
            raise DataError(f"{paths.record}: these embeddings are not complete; run the same `twn embed` again")
        if any(record.get(name) != first.get(name) for name in ("encoder", "side", "mode", "inputs")):
            raise DataError(f"{paths.record} and its first shard are of different encoders, modes or inputs")
        found_rows, found_ND = _read_shard(paths, record)
        rows += found_rows
        arrays.append(found_ND)
    return StoredEmbeddings(rows, np.concatenate(arrays), first)


def read_hashes(paths: OutputPaths, parts: Sequence[Path]) -> dict[str, str]:
    """Content hash by key, of the parts that are there or of what they were joined to."""
    found: dict[str, str] = {}
    if paths.keys.exists() and not parts:
        lines = paths.keys.read_text(encoding="utf-8").split("\n")
        return {row["key"]: row["hash"] for row in map(json.loads, filter(None, lines))}
    for path in parts or [paths.parquet]:
        table = pq.read_table(path, columns=["key", "hash"])
        found.update(zip(table.column("key").to_pylist(), table.column("hash").to_pylist(), strict=True))
    return found


def is_embeddings(folder: Path) -> bool:
    """Whether `twn embed` wrote this folder."""
    return bool(list(folder.glob("embed.json")) or list(folder.glob("embed-*-of-*.json")))


def _shards(folder: Path) -> Iterator[OutputPaths]:
    if (folder / "embed.json").exists():
        yield OutputPaths(folder)
        return
    names = sorted(path.stem for path in folder.glob("embed-*-of-*.json"))
    if not names:
        raise DataError(f"{folder}: no embeddings there (no embed.json); make them with `twn embed`")
    shards = int(names[0].rsplit("-", 1)[1])
    for shard in range(shards):
        paths = OutputPaths(folder, shard, shards)
        if not paths.record.exists():
            raise DataError(f"{folder}: shard {shard}/{shards} is missing; run `twn embed --shard {shard}/{shards}`")
        yield paths


def _read_shard(paths: OutputPaths, record: dict[str, Any]) -> tuple[list[dict[str, Any]], np.ndarray]:
    dimension = record["encoder"]["dimension"]
    _check_digests(paths, record)
    try:
        if record["settings"]["format"] == "parquet":
            table = pq.read_table(paths.parquet)
            rows, embedding_ND = table.drop_columns("embedding").to_pylist(), _embeddings(table, dimension)
        else:
            rows = [json.loads(line) for line in paths.keys.read_text(encoding="utf-8").split("\n") if line]
            embedding_ND = np.load(paths.npy, allow_pickle=False)
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{paths.folder}: its embeddings cannot be read ({error}); embed again") from error
    if embedding_ND.shape != (len(rows), dimension):
        raise DataError(
            f"{paths.folder}: {paths.record.name} says {len(rows)} embeddings of width {dimension}, there is an array "
            f"{embedding_ND.shape}; embed again"
        )
    return rows, embedding_ND


def _check_digests(paths: OutputPaths, record: dict[str, Any]) -> None:
    """Refuse files that are not as they were written; records of release 0.1 have no digests."""
    digests = record.get("sha256", {})
    if not isinstance(digests, dict):
        raise DataError(f"{paths.record} is broken ('sha256' must be a dictionary): embed again")
    for name, digest in digests.items():
        path = paths.folder / name
        if not path.is_file() or file_digest(path) != digest:
            problem = "is damaged (its content is not what was written)" if path.is_file() else "is missing"
            raise DataError(f"{path} {problem}; copy the folder again, or embed again")


def _embeddings(table: pa.Table, dimension: int) -> np.ndarray:
    """The embedding column as float32 (N, D)."""
    column = table.column("embedding").combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(-1, dimension)
